"""What a trial's journal says of it. Oracle: Table 1's rule, "fail" above 20 % error."""

import dataclasses

import pytest

from dist_resnet.ablation.watch import Trial
from dist_resnet.launch.preparation import prepare
from dist_resnet.recipe import Execution, Recipe


def _ended(recipe: Recipe, execution: Execution, error: float, **changes) -> str:
    """The status of a trial that has finished with an error."""
    trial = Trial(prepare(dataclasses.replace(recipe, **changes), execution, job="test"), [])
    values = {"val/loss": 1.0, "val/top1_error": error}
    trial.take([{"kind": "metrics", "step": trial.total, "values": values}, {"kind": "finished"}])
    return trial.status


@pytest.mark.parametrize(("error", "status"), [(0.19, "finished"), (0.21, "fail")])
def test_a_run_of_the_papers_length_fails_above_20_percent(recipe: Recipe, execution: Execution, error, status):
    assert _ended(recipe, execution, error, epochs=64_000 / 3) == status


def test_a_shortened_run_does_not_fail_for_its_error(recipe: Recipe, execution: Execution):
    assert _ended(recipe, execution, 0.9) == "finished"


def test_the_copy_for_a_checkpoint_is_no_step(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    trial.take([{"kind": "metrics", "step": 3, "values": {"time/checkpoint_seconds": 0.01}}])
    assert trial.step == 0


def test_a_trial_that_was_stopped_is_paused_until_it_goes_on(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    session = {"kind": "session", "start_step": 0, "device": "CPU"}
    told = trial.take([session, {"kind": "stopped", "step": 3}])
    assert (trial.status, trial.is_over) == ("paused", True)
    assert told[-1] == "stopped after step 3; the same command goes on there"
    trial.take([session | {"start_step": 3}])
    assert (trial.status, trial.step, trial.is_over) == ("running", 3, False)


def test_a_trial_with_too_many_damaged_pictures_has_no_result(recipe: Recipe, execution: Execution):
    trial = Trial(prepare(recipe, execution, job="test"), [])
    (told,) = trial.take([{"kind": "too_damaged", "step": 3, "reason": "9 of the 96 training pictures are damaged"}])
    assert trial.status == "died"
    assert told.startswith("9 of the 96 training pictures are damaged")
