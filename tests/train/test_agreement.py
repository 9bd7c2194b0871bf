"""Decisions of all workers. Oracle: the votes, by a clock that only the test moves."""

import torch

from dist_resnet.train.agreement import Agreement, Decision, Intervals
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


class _Steps:
    """Takes steps of given seconds and collects the decisions after them."""

    def __init__(
        self,
        *,
        stop=lambda: False,
        warned=lambda: False,
        save_every_seconds: float = 1e9,
        intervals: Intervals | None = None,
    ) -> None:
        self._now = 0.0
        self.agreement = Agreement(
            WORKER,
            save_every_seconds=save_every_seconds,
            stop=stop,
            warned=warned,
            intervals=intervals or Intervals(),
            clock=lambda: self._now,
        )

    def take(self, count: int, seconds: float = 0.001) -> list[Decision]:
        found = []
        for _ in range(count):
            self._now += seconds
            found.append(self.agreement.after_step())
            if found[-1].save:
                self.agreement.saved()
        return found


def test_a_stop_is_decided_within_a_second_of_short_steps():
    assert any(decision.stop for decision in _Steps(stop=lambda: True).take(1000))


def test_without_votes_nothing_is_decided():
    assert not any(decision.stop or decision.save for decision in _Steps().take(500))


def test_time_makes_a_checkpoint_and_restarts_with_it():
    steps = _Steps(save_every_seconds=0.5)
    assert sum(decision.save for decision in steps.take(1500)) == 2
    assert not steps.take(1)[0].save


def test_most_short_steps_call_nobody():
    calls = []
    _Steps(stop=lambda: bool(calls.append(1))).take(1500)
    assert 10 < len(calls) < 1500 / 20


def test_every_long_step_has_a_decision():
    found = _Steps(stop=lambda: True).take(4, seconds=1.05)
    assert [decision.stop for decision in found] == [True] * 4


def test_a_notice_makes_a_checkpoint_and_more_of_them_until_the_end():
    calls = []
    steps = _Steps(
        warned=lambda: bool(calls.append(1)) or len(calls) > 1,
        intervals=Intervals(decisions=0.05, preemption_checks=0.2, preemption_saves=0.3),
    )
    saves = sum(decision.save for decision in steps.take(2000))
    assert len(calls) == 2
    assert 3 <= saves <= 7
