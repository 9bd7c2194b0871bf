"""Ray Train's trainer with only those of its helper processes that a run of ours needs.

Each idle process of Ray takes about a hundredth of a core, for ever, and one more start of Python after each failure.
"""

import logging

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback

logger = logging.getLogger(__name__)

# Ray Train's name for the actor that shares a cluster out among runs with MIN:MAX workers.
_COORDINATOR = "AutoscalingCoordinator"
_RELEASE_SECONDS = 10


class LeanTrainer(TorchTrainer):
    """A TorchTrainer without the actor that serves Ray Data, which is not used here.

    With `own_cluster` also without the one that frees a dead controller's resources: it asks Ray's dashboard every
    second, and a Ray of our own is ended whole instead.
    """

    def __init__(self, *arguments: object, own_cluster: bool, **options: object) -> None:
        self._unused: tuple[type, ...] = (DatasetsCallback, *([PlacementGroupCleanerCallback] if own_cluster else []))
        super().__init__(*arguments, **options)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self._unused)]

    @property
    def run_id(self) -> str:
        """Ray Train's own id of what `fit` will run."""
        return self.train_run_context.run_id


def release(run_id: str) -> None:
    """Gives back what a run of Ray Train that is gone has reserved, by its id.

    Else its reservation lasts for three minutes, in which a run with MIN:MAX workers finds no room.
    """
    try:
        coordinator = ray.get_actor(_COORDINATOR, namespace=_COORDINATOR)
        ray.get(coordinator.cancel_request.remote(f"train-{run_id}"), timeout=_RELEASE_SECONDS)
    except ValueError:
        return  # no run has reserved anything yet
    except RayError as error:
        logger.warning(
            "what an earlier start of the run has reserved cannot be given back (%s); it runs out within three minutes",
            type(error).__name__,
        )
