"""Measures signal and gradient at every residual unit on real images: Eqns. (4) to (8) of arXiv:1603.05027.

    python jobs/prepare_cifar.py --source cifar-10-batches-py --target cifar10
    python jobs/probe_signal.py --data.train "cifar10/train-*.parquet"
    python jobs/probe_signal.py --all-shortcuts --depths 20 110 1001 --data.train "cifar10/train-*.parquet"
    python jobs/probe_signal.py --run ~/dist_resnet/NAME
    python jobs/probe_signal.py --model models:/full_preactivation-resnet164-cifar10@champion --execution.tracking.uri http://HOST:5000

With fresh weights of a recipe, as its seed draws them, or with those and the trained ones of a run or of a registered
model. In float32, with BN in training mode, on the first ghost batches of training. Figure, CSV and JSON lie under
STORAGE/NAME/ and in MLflow. Expected: docs/signal-propagation.md; six shortcuts at three depths take about three
minutes on two CPU cores and 8 GiB.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args

from dist_resnet import cli, logs
from dist_resnet.recipe import Augment, Data, Execution, Model, Recipe, Shortcut, Tracking

RECIPE = Recipe(
    # The pre-activation unit, whose f is the identity that the equations assume.
    model=Model(depth=110, num_classes=10, placement="full_preactivation", stride_on="conv1x1"),
    data=Data(train="cifar10/train-*.parquet", validation="cifar10/test-*.parquet", dataset="cifar10"),
    augment=Augment(kind="pad", size=32, padding=4, flip=True),
    global_batch=128,
    ghost_batch=32,
)


@dataclass(frozen=True, kw_only=True)
class Mlflow:
    uri: str | None = None
    """MLflow tracking server, and that of --model; by default MLFLOW_TRACKING_URI, else a sqlite file beside the
    runs, or ~/dist_resnet/mlflow.db where they are on an object store."""
    experiment: str = "dist_resnet"
    """MLflow experiment that the probe belongs to."""


@dataclass(frozen=True, kw_only=True)
class Place:
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto: the GPU where there is one."""
    storage: str = "~/dist_resnet"
    """Where probes are kept, beside the runs: a local path or URI of an object store."""
    name: str | None = None
    """The probe's name, a folder under storage; by default the job's and a digest of what is measured."""
    tracking: Mlflow = field(default_factory=Mlflow)


@dataclass(frozen=True, kw_only=True)
class Options:
    recipe: Annotated[Recipe, cli.FLAT] = RECIPE
    execution: Place = field(default_factory=Place)
    run: str | None = None
    """A run's directory, STORAGE/NAME, whose recipe and newest checkpoint are taken."""
    model: str | None = None
    """In place of a run, a registered model: models:/NAME/VERSION or models:/NAME@ALIAS."""
    all_shortcuts: Annotated[bool, cli.FLAG] = False
    """Measure every shortcut, with the settings of the recipe."""
    depths: tuple[int, ...] = ()
    """Measure at each of these depths; by default at the recipe's."""
    batches: int = 1
    """Ghost batches to measure on; means over them are given."""

    def __post_init__(self) -> None:
        if self.run is None and self.model is None:
            return
        cli.run_or_model(self.run, self.model)
        if self.all_shortcuts or self.depths:
            raise ValueError("--all-shortcuts and --depths are for fresh weights; leave out --run and --model")
        if given := sorted(self.recipe.differences(RECIPE)):
            raise ValueError(f"--run and --model bring their own recipe; leave out {', '.join(given)}")


def main() -> None:
    """Reads the options, measures, prints what was found as JSON."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help need not wait for torch.
    from dist_resnet.analysis import probe
    from dist_resnet.launch import local

    place = options.execution
    with cli.bad_input_exits():
        execution = local.settle(
            Execution(
                device=place.device,
                storage=place.storage,
                name=place.name,
                tracking=Tracking(uri=place.tracking.uri, experiment=place.tracking.experiment),
                precision="fp32",
            )
        )
        prepared = probe.prepare_probe(subjects_of(options), options.batches, execution, job="probe_signal")
        print(json.dumps(probe.run(prepared), indent=2))


def subjects_of(options: Options) -> list:
    """The networks to measure."""
    from dist_resnet.analysis.probe import Subject

    if options.run is None and options.model is None:
        shortcuts = get_args(Shortcut) if options.all_shortcuts else (options.recipe.model.shortcut,)
        depths = options.depths or (options.recipe.model.depth,)
        models = [replace(options.recipe.model, shortcut=kind, depth=depth) for kind in shortcuts for depth in depths]
        return [
            Subject(label=f"{model.shortcut}_{model.depth}", recipe=replace(options.recipe, model=model))
            for model in models
        ]
    recipe, weights, classes = _trained(options)
    if options.recipe.data.train != RECIPE.data.train:
        data = replace(recipe.data, train=options.recipe.data.train, train_digest=None)
        recipe = replace(recipe, data=data)
    label = f"{recipe.model.shortcut}_{recipe.model.depth}"
    return [
        Subject(label=f"{label}_fresh", recipe=recipe),
        Subject(label=f"{label}_trained", recipe=recipe, weights=weights, classes=classes),
    ]


def _trained(options: Options) -> tuple:
    """The recipe, the weights and the class names of a run or of a registered model."""
    from dist_resnet.launch.trained import open_trained

    source = cli.run_or_model(options.run, options.model)
    with open_trained(source, tracking_uri=options.execution.tracking.uri) as trained:
        return trained.recipe, trained.read_weights(), trained.classes_beside(None)


if __name__ == "__main__":
    cli.run(main)
