"""Registers the model of a run's checkpoint in MLflow's registry, as a new version.

    python jobs/register_model.py --run ~/dist_resnet/NAME
    python jobs/register_model.py --run s3://bucket/runs/NAME --step 5000 --tracking-uri https://mlflow.example.org

The alias champion moves to the new version if its top-1 error on the same images is lower, or as --promote says.
Training jobs register their model when they finish.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    run: str
    """The run's directory, STORAGE/NAME: a local path or an object-store URI."""
    step: int | None = None
    """Registers the checkpoint after this many optimizer steps. Unset: the newest."""
    name: str | None = None
    """The registered model's name. Unset: preact-resnet<depth> for full pre-activation on ImageNet, otherwise a name
    such as original-dropout-resnet110-cifar10."""
    promote: Literal["better", "always", "never"] = "better"
    """When the version becomes the champion: if its error is lower, always, or never."""
    tracking_uri: str | None = None
    """MLflow tracking server. Unset: MLFLOW_TRACKING_URI, or the sqlite file next to the runs (~/dist_resnet/mlflow.db
    for runs on an object store)."""


def main() -> None:
    """Registers the model and prints the version as JSON."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for torch.
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
