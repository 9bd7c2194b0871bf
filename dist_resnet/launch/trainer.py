"""Ray Train's trainer with only those of its helper processes that a run of ours needs.

Each idle process of Ray takes about a hundredth of a core, for ever, and one more start of Python after each failure.
"""

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback


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
