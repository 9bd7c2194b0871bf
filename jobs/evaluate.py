"""Evaluates a run's newest checkpoint or a registered model, and prints the errors as JSON.

    python jobs/evaluate.py --run ~/dist_resnet/NAME
    python jobs/evaluate.py --run s3://bucket/runs/NAME --validation "/data/imagenet/validation-*.parquet" \
        --crops 224 320 --shorter-sides 256 320 --workers 8
    python jobs/evaluate.py --model models:/preact-resnet200@champion --validation "/data/imagenet/validation-*.parquet"

Uses the model's own validation images, or others. The errors of a registered model are recorded on its version.
"""

import json
from dataclasses import dataclass
from typing import Literal

from dist_resnet import cli, logs
from dist_resnet.recipe import Evaluation, Execution, MatchClasses, Performance


@dataclass(frozen=True, kw_only=True)
class Options:
    run: str | None = None
    """The run's directory, STORAGE/NAME: a local path or URI of an object store. Evaluates its newest checkpoint, or
    the one given as STORAGE/NAME/checkpoints/step_00001000. Unset: --model is evaluated."""
    model: str | None = None
    """A registered model instead of a run: models:/NAME/VERSION or models:/NAME@ALIAS. Unset: --run is evaluated."""
    tracking_uri: str | None = None
    """The registry's MLflow server; by default MLFLOW_TRACKING_URI."""
    validation: str | None = None
    """Images to evaluate on, a glob or folder of Parquet shards; by default the run's own."""
    label_column: str | None = None
    """Their column of labels; by default the recipe's, else `label` or the only column with a usual name for labels."""
    match_classes: MatchClasses | None = None
    """How labels map to the model's classes. names: by class name, in any order. numbers: by number, ignoring names. By
    default names, and for the run's own images the run's setting."""
    crops: tuple[int, ...] | None = None
    """Sides of the center crop in pixels; by default the run's own."""
    shorter_sides: tuple[int, ...] | None = None
    """The shorter side in pixels to which images are resized before each crop; by default the crops' sides."""
    workers: int = 1
    """Processes on this machine that share the images, each with a GPU or its share of the cores."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto: a GPU if there is one."""
    batch: int = 128
    """Images per forward pass."""

    def __post_init__(self) -> None:
        cli.run_or_model(self.run, self.model)


def main() -> None:
    """Evaluates, prints the errors, and records those of a registered model."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for torch.
    from dist_resnet.launch.evaluate import evaluate
    from dist_resnet.registry.publish import record_evaluation

    source = cli.run_or_model(options.run, options.model)
    with cli.bad_input_exits():
        evaluation = None
        if options.crops is not None:
            evaluation = Evaluation(crops=options.crops, shorter_sides=options.shorter_sides or options.crops)
        execution = Execution(
            workers=options.workers,
            device=options.device,
            performance=Performance(evaluation_batch=options.batch),
        )
        found = evaluate(
            source,
            execution,
            tracking_uri=options.tracking_uri,
            validation=options.validation,
            evaluation=evaluation,
            match_classes=options.match_classes,
            label_column=options.label_column,
        )
        lacking = {"classes_without_images": found.lacking} if found.lacking else {}
        print(json.dumps(found.metrics | lacking, indent=2))
        if found.version is not None:
            record_evaluation(
                found.version,
                tracking_uri=options.tracking_uri,
                digest=found.validation_digest,
                evaluation=found.evaluation,
                metrics=found.metrics,
                classes=(found.num_classes - len(found.lacking), found.num_classes),
            )


if __name__ == "__main__":
    cli.run(main)
