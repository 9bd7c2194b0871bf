"""A trial's share of a cluster. Oracle: arithmetic by hand, and the order of what a trial does."""

import dataclasses

import pytest

from dist_resnet.launch.plan import prepare
from dist_resnet.launch.ray import tune
from dist_resnet.launch.ray.shares import Share, check_trials, fitting
from dist_resnet.recipe import Execution, Recipe

GIB = 1 << 30


def test_several_workers_for_a_trial_are_refused_before_ray_starts(execution: Execution):
    with pytest.raises(ValueError, match="execution.workers must be 1 for a trial, got 2"):
        check_trials(dataclasses.replace(execution, workers=2))


@pytest.mark.parametrize(
    ("trials_per_gpu", "complaint"),
    [
        (2, "--trials-per-gpu 2 cannot fit: the trials run on the CPU"),
        (0, "--trials-per-gpu must be at least 1, got 0"),
    ],
)
def test_a_share_of_a_missing_gpu_is_refused(execution: Execution, trials_per_gpu: int, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        check_trials(execution, trials_per_gpu=trials_per_gpu)


@pytest.mark.parametrize(
    ("asked", "need_gib", "most", "expected"),
    [
        (None, 2.0, 8, 8),  # 80 GiB hold 36, but 8 are enough
        (None, 2.0, 4, 4),  # cores for 4 only
        (None, 30.0, 8, 2),  # 0.92 x 80 / 30 = 2.45
        (12, 6.0, 8, 12),  # the number asked for is used if it fits: 0.92 x 80 / 6 = 12.27
    ],
)
def test_as_many_trials_share_a_gpu_as_their_memory_allows(asked, need_gib, most, expected):
    assert fitting("cell", asked, int(need_gib * GIB), 80 * GIB, most) == expected


@pytest.mark.parametrize(("asked", "need_gib", "room"), [(13, 6.0, 12), (None, 79.0, 0), (1, 79.0, 0)])
def test_a_fraction_that_cannot_fit_is_refused(asked, need_gib, room):
    with pytest.raises(ValueError, match=f"cannot fit: cell needs {need_gib:.2f} GiB .* at most {room} fit"):
        fitting("cell", asked, int(need_gib * GIB), 80 * GIB, 8)


def test_a_trial_takes_its_share_of_a_gpu_before_it_trains(recipe: Recipe, execution: Execution, monkeypatch):
    plan = prepare(recipe, execution, job="test")
    on_gpu = dataclasses.replace(plan, execution=dataclasses.replace(plan.execution, device="gpu"))
    done = []
    monkeypatch.setattr(tune.gpu, "take", lambda device, *, share: done.append((str(device), share)))
    monkeypatch.setattr(tune, "run_worker", lambda *_, **__: done.append("trained"))
    for each in (plan, on_gpu):
        shares = {each.name: Share(cpus=1, gpus=0.25)}
        sweep, plans = plan.directory.parent, {each.name: each}
        tune._run_trial({"trial": each.name}, sweep=sweep, plans=plans, shares=shares, early_stop=False)
    assert done == [("cpu", 0.25), "trained", ("cuda:0", 0.25), "trained"]
