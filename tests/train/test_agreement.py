"""Decisions of all workers. Oracle: the wishes that were made."""

import time

import torch

from dist_resnet.train.agreement import Agreement, Intervals
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


def _agreement(
    *, stop=lambda: False, warned=lambda: False, save_every_seconds: float = 1e9, intervals: Intervals | None = None
) -> Agreement:
    return Agreement(
        WORKER, save_every_seconds=save_every_seconds, stop=stop, warned=warned, intervals=intervals or Intervals()
    )


def _decisions(agreement: Agreement, seconds: float) -> list:
    """One decision a step, of 1 ms steps."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)
        found.append(agreement.after_step())
    return found


def test_a_wish_to_stop_is_heard_within_a_few_seconds_of_short_steps():
    assert any(decision.stop for decision in _decisions(_agreement(stop=lambda: True), 1.0))


def test_nobody_wishing_nothing_is_done():
    assert not any(decision.stop or decision.save for decision in _decisions(_agreement(), 0.5))


def test_time_makes_a_checkpoint_and_starts_anew_with_it():
    agreement = _agreement(save_every_seconds=0.5)
    assert any(decision.save for decision in _decisions(agreement, 1.5))
    agreement.saved()
    assert not agreement.after_step().save


def test_most_steps_ask_nobody():
    asked = []
    agreement = _agreement(stop=lambda: bool(asked.append(1)))
    steps = len(_decisions(agreement, 1.5))
    assert len(asked) < steps / 20


def test_after_long_steps_there_is_a_decision_each_time():
    agreement = _agreement(stop=lambda: True)
    found = []
    for _ in range(2):
        time.sleep(1.05)
        found.append(agreement.after_step().stop)
    assert found == [True] * 2


def test_a_notice_makes_a_checkpoint_and_more_of_them_till_the_end():
    asked = []
    agreement = _agreement(
        warned=lambda: bool(asked.append(1)) or len(asked) > 1,
        intervals=Intervals(decisions=0.05, questions=0.2, last_saves=0.3),
    )
    saves, end = 0, time.monotonic() + 2.0
    while time.monotonic() < end:
        time.sleep(0.001)
        if agreement.after_step().save:
            saves += 1
            agreement.saved()
    assert len(asked) == 2
    assert 3 <= saves <= 7
