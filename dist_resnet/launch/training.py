"""A training run from start to registered model, for notebooks and for every training job."""

import logging
import shlex
from typing import Any

from dist_resnet import logs, terminal
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.ray import cluster
from dist_resnet.launch.ray import train as ray_train
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking import commands
from dist_resnet.tracking.records import Finished
from dist_resnet.wording import one_line

logger = logging.getLogger(__name__)


def run_training(recipe: Recipe, execution: Execution) -> dict[str, Any]:
    """The summary of the recipe's run, which is trained, evaluated and registered as a training job does it.

    The summary is what `summary.json` holds: `status` (`finished`, `diverged`, `stopped`), `steps`, `top1_error`,
    `top5_error`, `images_per_second`, `model_uri` for `pull`, and others. Progress is shown in the notebook, on the
    terminal, or as lines on standard error; so is the log, unless logging is configured. The run's name is
    `execution.name`, by default the model's and the first digits of the recipe's fingerprint: the same call continues
    the run, or returns its summary if it is finished. The first interrupt saves a checkpoint and stops, which is a
    summary too; a second one raises KeyboardInterrupt.

    Raises ValueError before anything starts if the input is bad, in the line in which a job would: what was found, what
    is allowed, what to do. Raises RuntimeError or OSError if the run fails; the same call then continues it.

    >>> from dist_resnet import Augment, Data, Execution, Model, Recipe
    >>> recipe = Recipe(
    ...     model=Model(depth=20, num_classes=10),
    ...     data=Data(train="no/such/train-*.parquet", validation="no/such/test-*.parquet", dataset="cifar10"),
    ...     augment=Augment(kind="pad", size=32),
    ... )
    >>> summary = run_training(recipe, Execution(workers=2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: no Parquet shards match .../no/such/train-*.parquet; run ...
    """
    logs.configure_unless_done()
    # Imported late, because it imports MLflow.
    from dist_resnet.registry.publish import default_name, name_of_images

    return train(prepare(recipe, execution, job=default_name(recipe.model, name_of_images(recipe))))


def prepare(recipe: Recipe, execution: Execution, *, job: str) -> Plan:
    """A run that has passed all checks and is connected to Ray. If it has no name, its name starts with `job`.

    Raises ValueError, in one line, if the input is bad.
    """
    try:
        return ray_train.prepare_run(recipe, execution, job=job)
    except UnicodeError as error:
        raise ValueError(terminal.said_of(error)) from error
    except OSError as error:
        raise ValueError(" ".join(str(error).split())) from error


def train(plan: Plan) -> dict[str, Any]:
    """Trains a prepared run to its end, registers its model and returns its summary.

    Raises RuntimeError or OSError if the run fails; the same plan made again continues it.
    """
    try:
        summary = ray_train.run(plan)
    except KeyboardInterrupt:
        if cluster.own_cluster():  # otherwise its workers would keep running under a notebook
            cluster.disconnect()
        raise
    if summary["status"] == Finished.kind and plan.execution.tracking.register and (model := _register(plan)):
        summary["model_uri"] = model
    return summary


def _register(plan: Plan) -> str | None:
    """The models:/NAME/VERSION of a finished run's model, registered once; a registry that is down costs a warning."""
    from dist_resnet.registry.publish import publish_once

    run, tracking = plan.directory.uri, plan.execution.tracking
    try:
        return publish_once(run, tracking_uri=tracking.uri, name=tracking.model_name)
    except Exception as error:
        # Whatever a registry or its storage raises: the run is finished.
        where = ["--tracking-uri", without_credentials(tracking.uri)] if tracking.uri else []
        where += ["--name", tracking.model_name] if tracking.model_name else []
        logger.warning(
            "the model is not registered (%s); later: %s %s",
            without_credentials(one_line(error)),
            commands.job("register_model"),
            shlex.join(["--run", run, *where]),
        )
        return None
