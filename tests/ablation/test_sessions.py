"""A trial's starts, kills, stops and curve points. Oracle: counts, sums and means by hand on records by hand."""

import pytest

from dist_resnet.ablation.sessions import Evaluation, Sessions, count_sessions, evaluations, same_answer
from dist_resnet.tracking.journal import history
from dist_resnet.tracking.records import Finished, Metrics, Session, Stopped


def _session(start: int, time: float) -> Session:
    """It began two seconds before its first record."""
    return Session(start_step=start, time=time, begun=time - 2)


def _steps(first: int, last: int, time: float) -> list[Metrics]:
    """A record a second."""
    return [
        Metrics(step=step, time=time + step - first, values={"train/loss": 10.0 * step, "time/step_seconds": 0.5})
        for step in range(first, last + 1)
    ]


def _evaluated(step: int, error: float, time: float) -> Metrics:
    return Metrics(step=step, time=time, values={"val/top1_error": error})


def test_one_undisturbed_session():
    records = [_session(0, 100), *_steps(1, 4, 101), Finished(steps=4, time=110)]
    found = count_sessions(records)
    assert found == Sessions(starts=1, stops=0, kills=0, repeated_steps=0, wall_seconds=12)
    assert found.restarts == 0


def test_kills_stops_and_repeated_steps_are_told_apart():
    records = [
        _session(0, 100),
        *_steps(1, 5, 101),  # killed after 5 steps; the checkpoint is of step 3
        _session(3, 200),
        *_steps(4, 8, 201),
        Stopped(step=8, time=209),
        _session(8, 300),  # killed before a step
        _session(8, 400),
        *_steps(9, 10, 401),
        Finished(steps=10, time=410),
    ]
    found = count_sessions(records)
    assert (found.starts, found.restarts, found.stops, found.kills, found.repeated_steps) == (4, 3, 1, 2, 2)
    # From two seconds before each session to its last record.
    assert found.wall_seconds == (105 - 98) + (209 - 198) + (300 - 298) + (410 - 398)


def test_a_session_that_may_still_run_is_no_kill():
    assert count_sessions([_session(0, 100), *_steps(1, 5, 101)]).kills == 0
    killed = count_sessions([_session(0, 100), *_steps(1, 5, 101), _session(0, 200)])
    assert (killed.kills, killed.repeated_steps) == (1, 5)


def test_a_trial_that_has_not_started_counts_nothing():
    assert count_sessions([]) == Sessions(starts=0, stops=0, kills=0, repeated_steps=0, wall_seconds=0)
    assert count_sessions([]).restarts == 0


def test_evaluations_have_the_mean_loss_and_the_seconds_of_the_steps_that_count():
    records = [
        _session(0, 100),
        *_steps(1, 4, 101),
        _evaluated(2, 0.9, 105),
        _evaluated(4, 0.8, 106),
        _session(2, 200),  # step 3 and 4 and the second evaluation are done again
        *_steps(3, 6, 201),
        _evaluated(4, 0.7, 205),
        _evaluated(6, 0.5, 206),
    ]
    assert evaluations(history(records)) == [
        Evaluation(step=2, top1_error=0.9, training_loss=15.0, training_seconds=1.0),
        Evaluation(step=4, top1_error=0.7, training_loss=35.0, training_seconds=2.0),
        Evaluation(step=6, top1_error=0.5, training_loss=55.0, training_seconds=3.0),
    ]


def test_an_evaluation_before_the_first_step_has_no_loss():
    (found,) = evaluations(history([_session(0, 100), _evaluated(0, 0.9, 101)]))
    assert (found.training_loss, found.training_seconds) == (None, 0.0)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(["bf16"], "bf16"), (["bf16", "bf16", "fp32"], "bf16, then fp32"), ([None, "fp32"], "fp32"), ([None], None)],
)
def test_what_sessions_say_is_told_once_each(answers, expected):
    assert same_answer(answers) == expected


def test_a_session_of_an_older_journal_counts_from_its_first_record():
    assert count_sessions([Session(start_step=0, time=100), *_steps(1, 4, 101)]).wall_seconds == 4
