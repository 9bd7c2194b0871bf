"""The trainer's helper processes. Oracle: those that Ray Train makes of itself."""

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from dist_resnet.launch.trainer import LeanTrainer


def _names(trainer: TorchTrainer) -> list[str]:
    return [type(callback).__name__ for callback in trainer._create_default_callbacks()]


@pytest.mark.parametrize(
    ("own_cluster", "left_out"),
    [(False, {"DatasetsCallback"}), (True, {"DatasetsCallback", "PlacementGroupCleanerCallback"})],
)
def test_only_what_is_not_needed_is_left_out(own_cluster: bool, left_out: set[str]) -> None:
    scaling = ScalingConfig(num_workers=2)
    theirs = _names(TorchTrainer(print, scaling_config=scaling))
    ours = _names(LeanTrainer(print, own_cluster=own_cluster, scaling_config=scaling))
    assert set(theirs) - set(ours) == left_out
    assert ours == [name for name in theirs if name not in left_out]
