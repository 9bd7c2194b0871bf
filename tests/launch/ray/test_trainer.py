"""The trainer's helper processes. Oracle: those that Ray Train makes of itself."""

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from dist_resnet.launch.ray.trainer import LeanTrainer, release


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


@pytest.mark.ray
def test_what_a_run_that_is_gone_has_reserved_is_free_for_the_next(ray_cluster: str) -> None:
    coordinator = get_or_create_autoscaling_coordinator()
    every_core = {"resources": [{"CPU": ray.cluster_resources()["CPU"]}], "expire_after_s": 180}

    def reserved(run_id: str) -> dict:
        return ray.get(coordinator.get_reserved_resources.remote(f"train-{run_id}", recompute=True))

    for run_id in ("gone", "next"):
        ray.get(coordinator.request_resources.remote(requester_id=f"train-{run_id}", **every_core))
    assert reserved("gone")
    assert not reserved("next")
    release("gone")
    assert not reserved("gone")
    assert reserved("next")
    release("next")
    release("never heard of")
