r"""Measures signal and gradient at every residual unit on real images: Eqns. (4) to (8) of arXiv:1603.05027.

    python jobs/prepare_cifar.py --source cifar-10-batches-py --target cifar10
    python jobs/probe_signal.py --data.train "cifar10/train-*.parquet"
    python jobs/probe_signal.py --all-shortcuts --depths 20 110 1001 --data.train "cifar10/train-*.parquet"
    python jobs/probe_signal.py --run ~/dist_resnet/NAME
    python jobs/probe_signal.py --model models:/NAME@champion --execution.tracking.uri http://HOST:5000

Measures a recipe's initial weights; with --run or --model, also the trained weights. Everything is float32, with BN in
training mode, on the first ghost batches of training. The figure, a CSV and a JSON file are written to STORAGE/NAME/
and to MLflow. docs/signal-propagation.md shows the expected results; six shortcuts at three depths take about three
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
    """MLflow, which gets the curves and files."""

    uri: str | None = None
    """MLflow tracking server, also for --model. Unset: MLFLOW_TRACKING_URI, or else mlflow.db next to the probes (in
    ~/dist_resnet if they are stored in an object store)."""
    experiment: str = "dist_resnet"
    """MLflow experiment of the probe."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the probe is computed and stored."""

    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Device that computes. auto: the GPU if there is one."""
    storage: str = "~/dist_resnet"
    """Where probes are stored, next to the runs: a local path or URI of an object store."""
    name: str | None = None
    """Name of the probe, a folder in the storage. Unset: the job's name and a digest of what is measured."""
    tracking: Mlflow = field(default_factory=Mlflow)


@dataclass(frozen=True, kw_only=True)
class Options:
    run: str | None = None
    """Directory of a run, STORAGE/NAME: measures its recipe and newest checkpoint. Unset: initial weights only."""
    model: str | None = None
    """A registered model instead of a run: models:/NAME/VERSION or models:/NAME@ALIAS. Unset: initial weights only."""
    all_shortcuts: Annotated[bool, cli.FLAG] = False
    """Measure every shortcut, with the settings of the recipe."""
    depths: tuple[int, ...] = ()
    """Numbers of layers to measure at. Unset: --model.depth."""
    batches: int = 1
    """Number of ghost batches to average over."""
    recipe: Annotated[Recipe, cli.FLAT] = RECIPE
    execution: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        if self.recipe.initial.weights is not None:
            raise ValueError("--initial.weights is for training; give --run or --model to measure trained weights")
        if self.run is None and self.model is None:
            return
        cli.run_or_model(self.run, self.model)
        if self.all_shortcuts or self.depths:
            raise ValueError("--all-shortcuts and --depths are for initial weights; leave out --run and --model")
        if given := sorted(self.recipe.differences(RECIPE)):
            raise ValueError(f"--run and --model bring their own recipe; leave out {', '.join(given)}")


def main() -> None:
    """Reads the options, measures and prints the results as JSON."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for torch.
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
    """The recipe, weights and class names of a run or a registered model."""
    from dist_resnet.launch.trained import open_trained

    source = cli.run_or_model(options.run, options.model)
    with open_trained(source, tracking_uri=options.execution.tracking.uri) as trained:
        return trained.recipe, trained.read_weights(), trained.classes_beside(None)


if __name__ == "__main__":
    cli.run(main)
