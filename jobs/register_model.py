"""Registers the model of a run's checkpoint in MLflow's registry, as a new version.

    python jobs/register_model.py --run ~/dist_resnet/NAME
    python jobs/register_model.py --run s3://bucket/runs/NAME --step 5000 --tracking-uri https://mlflow.example.org

The alias champion moves to the new version where its top-1 error on the same images is lower, or as --promote says.
Training jobs do this by themselves when they finish.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    run: str
    """The run's directory, STORAGE/NAME: a local path or URI of an object store."""
    step: int | None = None
    """The checkpoint after that many optimizer steps; by default the newest."""
    name: str | None = None
    """The registered model's name; by default preact-resnet<depth> for full pre-activation on ImageNet, else such as
    original-dropout-resnet110-cifar10."""
    promote: Literal["better", "always", "never"] = "better"
    """Whether the version becomes the champion."""
    tracking_uri: str | None = None
    """MLflow tracking server; by default MLFLOW_TRACKING_URI, else the sqlite file beside the runs, or
    ~/dist_resnet/mlflow.db where they are on an object store."""


def main() -> None:
    """Reads the options, registers, prints the version as JSON."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help need not wait for torch.
    from dist_resnet.registry.publish import publish_run

    with cli.bad_input_exits():
        published = publish_run(
            options.run,
            tracking_uri=options.tracking_uri,
            step=options.step,
            name=options.name,
            promote=options.promote,
        )
    print(json.dumps({"uri": published.uri} | asdict(published), indent=2))


if __name__ == "__main__":
    cli.run(main)
