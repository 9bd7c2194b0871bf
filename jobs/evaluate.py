"""Evaluates a run's newest checkpoint, on its own validation pictures or on others, and prints the errors as JSON.

    python jobs/evaluate.py --run ~/dist_resnet/NAME
    python jobs/evaluate.py --run s3://bucket/runs/NAME --validation /data/imagenet/validation --crops 224 320 \
        --shorter-sides 256 320
"""

import json
from dataclasses import dataclass
from typing import Literal

from dist_resnet import cli, logs
from dist_resnet.recipe import Evaluation, Execution


@dataclass(frozen=True, kw_only=True)
class Options:
    run: str
    """The run's directory, STORAGE/NAME: a local path, s3:// or gs:// URI."""
    validation: str | None = None
    """Pictures to evaluate on, a glob or folder of Parquet shards; by default the run's own."""
    crops: tuple[int, ...] | None = None
    """Sides of the centre crop in pixels; by default the run's own."""
    shorter_sides: tuple[int, ...] | None = None
    """The shorter side to which pictures are resized before each crop; by default the crops themselves."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto: the GPU where there is one."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Precision of the forward pass."""
    batch: int = 128
    """Pictures per forward pass."""


def main() -> None:
    """Reads the options, evaluates, prints."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help need not wait for torch.
    from dist_resnet.launch.evaluation import evaluate_run

    with cli.bad_input_exits():
        evaluation = None
        if options.crops is not None:
            evaluation = Evaluation(crops=options.crops, shorter_sides=options.shorter_sides or options.crops)
        execution = Execution(device=options.device, precision=options.precision, evaluation_batch=options.batch)
        errors = evaluate_run(options.run, execution, validation=options.validation, evaluation=evaluation)
    print(json.dumps(errors, indent=2))


if __name__ == "__main__":
    main()
