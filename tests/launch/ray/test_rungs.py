"""Which trials a sweep stops early. Oracle: Ray's ASHAScheduler, given complete trials one after the other."""

import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.launch.ray.rung_scheduler import RungScheduler
from dist_resnet.launch.ray.rungs import Rungs, rebuild
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking.journal import Journal, history, read_journal
from dist_resnet.tracking.records import Diverged, Ending, Finished, Metrics, Session
from dist_resnet.worker import Worker

STEPS = 40
Errors = dict[str, list[float]]


def _drawn(seed: int, trials: int = 9) -> Errors:
    """Errors of each trial after each step, with few distinct values, so that ties occur."""
    draw = random.Random(seed)
    return {f"trial{number}": [draw.randint(1, 30) / 30 for _ in range(STEPS)] for number in range(trials)}


def _by_ray(errors: Errors) -> set[str]:
    """The trials that Ray's own ASHA stops if each ends before the next starts."""
    scheduler = ASHAScheduler("step", metric="error", mode="min", max_t=STEPS + 1, grace_period=STEPS // 8)
    stopped = set()
    for name, curve in errors.items():
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        for step, error in enumerate(curve, 1):
            if scheduler.on_trial_result(None, trial, {"step": step, "error": error}) == "STOP":
                stopped.add(name)
                break
    return stopped


class _Sweep:
    """A sweep of several trials at once that is killed at random, and the content of its journals."""

    def __init__(self, errors: Errors, draw: random.Random) -> None:
        self._errors, self._draw = errors, draw
        self.journals: dict[str, list[tuple[int, float]]] = {name: [] for name in errors}
        self.over: dict[str, str] = {}

    def run(self, *, at_once: int, reports: int) -> None:
        """Continues until all trials have ended, or until a number of evaluations."""
        rungs = Rungs([list(self._errors)], STEPS)
        for name, journal in self.journals.items():
            for step, error in journal:
                rungs.record(name, step, error)
            if name in self.over:
                rungs.leave(name)
        scheduler = RungScheduler(rungs)
        waiting = [name for name in self._errors if name not in self.over]
        running: dict[str, int] = {}
        while reports > 0 and (waiting or running):
            for name in [waiting.pop(0) for _ in range(min(len(waiting), at_once - len(running)))]:
                # Some of the steps since the newest checkpoint are lost.
                newest = max((step for step, _ in self.journals[name]), default=0)
                running[name] = max(0, newest - self._draw.randint(0, 4))
            name = self._draw.choice(list(running))
            reports -= 1
            if self._report(scheduler, name, running[name] + 1):
                del running[name]
            else:
                running[name] += 1

    def _report(self, scheduler: RungScheduler, name: str, step: int) -> bool:
        """Takes one step with its evaluation; returns whether the trial has ended."""
        error = self._errors[name][step - 1]
        self.journals[name].append((step, error))
        trial = SimpleNamespace(config={"trial": name})
        decision = scheduler.on_trial_result(None, trial, {"step": step, "top1_error": error})  # pyrefly: ignore
        if decision == "CONTINUE" and step < STEPS:
            return False
        self.over[name] = "stopped" if decision == "STOP" else "finished"
        scheduler.on_trial_complete(None, trial, {})  # pyrefly: ignore
        return True

    @property
    def stopped(self) -> set[str]:
        return {name for name, end in self.over.items() if end == "stopped"}


@pytest.mark.parametrize("seed", range(30))
def test_trials_one_after_the_other_are_stopped_as_by_rays_asha(seed):
    errors = _drawn(seed)
    sweep = _Sweep(errors, random.Random(seed))
    sweep.run(at_once=1, reports=10_000)
    assert sweep.stopped == _by_ray(errors)
    assert set(sweep.over) == set(errors)


@pytest.mark.parametrize("seed", range(30))
def test_a_sweep_killed_again_and_again_stops_the_same_trials(seed):
    errors, draw = _drawn(seed), random.Random(seed)
    sweep = _Sweep(errors, draw)
    while len(sweep.over) < len(errors):
        sweep.run(at_once=2, reports=draw.randint(20, 60))
    assert sweep.stopped == _by_ray(errors)
    assert sweep.stopped


def test_a_trial_is_judged_once_those_before_it_have_reached_the_rung():
    rungs = Rungs([["a", "b", "c"]], 80)
    rungs.record("c", 10, 0.5)
    rungs.record("b", 10, 0.4)
    assert rungs.stopped() == set()
    rungs.record("a", 10, 0.3)
    assert rungs.stopped() == {"b", "c"}


def test_a_quarter_of_those_before_it_may_be_better():
    # The lower quartile of 0.1, 0.2, 0.3, 0.4 and 0.5 is 0.2.
    rungs = Rungs([["a", "b", "c", "d", "e", "on", "behind"]], 80)
    for name, error in zip("edcba", (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        rungs.record(name, 10, error)
    rungs.record("on", 10, 0.2)
    rungs.record("behind", 10, 0.21)
    assert rungs.stopped() == {"behind"}


def test_the_first_evaluation_at_or_after_a_rung_counts():
    rungs = Rungs([["a", "b"]], 80)
    rungs.record("a", 9, 0.9)
    rungs.record("a", 12, 0.5)
    rungs.record("a", 13, 0.1)
    rungs.record("b", 10, 0.4)
    assert rungs.stopped() == set()


def test_a_trial_stopped_at_a_rung_does_not_count_at_later_ones():
    # "b" passed 40 before it was known to be behind at 10; its 0.01 there must not stop "c".
    rungs = Rungs([["a", "b", "c"]], 80)
    for name, first, second in (("a", 0.3, 0.2), ("b", 0.5, 0.01), ("c", 0.2, 0.1)):
        rungs.record(name, 10, first)
        rungs.record(name, 40, second)
    assert rungs.stopped() == {"b"}


def test_a_dead_trial_is_not_waited_for_until_it_restarts():
    rungs = Rungs([["a", "b", "c"]], 80)
    scheduler = RungScheduler(rungs)
    trial = SimpleNamespace(config={"trial": "a"})
    rungs.record("b", 10, 0.3)
    rungs.record("c", 10, 0.4)
    assert rungs.stopped() == set()
    scheduler.on_trial_error(None, trial)  # pyrefly: ignore
    assert rungs.stopped() == {"c"}
    scheduler.on_trial_add(None, trial)  # pyrefly: ignore
    assert rungs.stopped() == set()


def test_trials_of_other_depths_or_data_sets_are_not_compared(recipe: Recipe, execution: Execution):
    changes = (
        {},
        {"model": dataclasses.replace(recipe.model, depth=14)},
        {"data": dataclasses.replace(recipe.data, dataset="cifar100")},
    )
    recipes = [dataclasses.replace(recipe, epochs=16, **change) for change in changes]
    plans = [
        prepare(each, dataclasses.replace(execution, name=f"trial{place}"), job="test")
        for place, each in enumerate(recipes)
    ]
    for place, plan in enumerate(plans):
        _record(plan, 0, {6: 0.1 + 0.1 * place})
    assert rebuild(plans).stopped() == set()


def test_a_trial_at_its_end_is_not_stopped():
    rungs = Rungs([["a", "b"]], 80)
    scheduler, trial = RungScheduler(rungs), SimpleNamespace(config={"trial": "b"})
    rungs.record("a", 10, 0.1)
    assert scheduler.on_trial_result(None, trial, {"step": 80, "top1_error": 0.9}) == "CONTINUE"  # pyrefly: ignore
    assert scheduler.on_trial_result(None, trial, {"step": 79, "top1_error": 0.9}) == "STOP"  # pyrefly: ignore


def test_a_trial_whose_process_died_restarts_before_those_after_it():
    scheduler = RungScheduler(Rungs([["a", "b", "c"]], 80))
    trials = [SimpleNamespace(config={"trial": name}, status=Trial.PENDING) for name in ("b", "c", "a")]
    controller = SimpleNamespace(get_trials=lambda: trials)
    assert scheduler.choose_trial_to_run(controller) is trials[2]
    trials[2].status = Trial.RUNNING
    assert scheduler.choose_trial_to_run(controller) is trials[0]
    trials.clear()
    assert scheduler.choose_trial_to_run(controller) is None


def _plans(recipe: Recipe, execution: Execution, names: str) -> list[Plan]:
    """Plans of 48 steps: the rungs are 6 and 24."""
    recipe = dataclasses.replace(recipe, epochs=16)
    return [prepare(recipe, dataclasses.replace(execution, name=name), job="test") for name in names]


def _record(plan: Plan, start: int, errors: dict[int, float], end: Ending | None = None) -> None:
    plan.claim()
    journal = Journal(plan.directory)
    journal.append(Session(start_step=start, total_steps=48, device="CPU"))
    for step, error in errors.items():
        journal.append(Metrics(step=step, values={"val/top1_error": error}))
    if end:
        journal.append(end)
    journal.commit()


def test_rungs_are_rebuilt_from_finished_stopped_diverged_and_unfinished_trials(recipe: Recipe, execution: Execution):
    finished, stopped, diverged, unfinished, waiting = plans = _plans(recipe, execution, "abcde")
    _record(finished, 0, {6: 0.5, 24: 0.3, 48: 0.1}, Finished(steps=48))
    _record(stopped, 0, {6: 0.6})
    stopped.directory.write_json("summary.json", {"status": "stopped"})
    _record(diverged, 0, {3: 0.9}, Diverged(step=3))
    _record(unfinished, 0, {6: 0.4, 24: 0.31})
    rungs = rebuild(plans)
    assert rungs.order == list("abcde")
    assert rungs.stopped() == {"b", "d"}  # the second rung has 0.3 and 0.31
    rungs.record(waiting.name, 6, 0.46)
    assert rungs.stopped() == {"b", "d", "e"}  # the lower quartile of 0.5, 0.6 and 0.4 is 0.45; "d" stays stopped


def test_a_resumed_trials_repeated_evaluations_are_waited_for(recipe: Recipe, execution: Execution):
    first, second = plans = _plans(recipe, execution, "ab")
    _record(first, 0, {3: 0.9, 6: 0.3})
    _record(first, 4, {})  # resumed before its evaluation at the rung
    _record(second, 0, {6: 0.4})
    rungs = rebuild(plans)
    assert rungs.stopped() == set()
    rungs.record("a", 6, 0.3)
    assert rungs.stopped() == {"b"}


class _KilledError(Exception):
    """Ends the sweep after an evaluation is in the journal and before the decision."""


class _StoppedEarlyError(Exception):
    pass


def _train(plans: list[Plan], killed_at: tuple[int, ...] = ()) -> dict[str, str]:
    """How each trial of a sweep ended; trains one after the other and is killed at the evaluations of these numbers."""
    worker, evaluations, ends = Worker(rank=0, world_size=1, device=torch.device("cpu")), iter(range(1000)), {}
    while len(ends) < len(plans):
        scheduler = RungScheduler(rebuild(plans))
        try:
            for plan in plans:
                if plan.name not in ends:
                    ends[plan.name] = _train_one(plan, worker, scheduler, evaluations, killed_at)
        except _KilledError:
            continue
    return ends


def _train_one(plan: Plan, worker: Worker, scheduler: RungScheduler, evaluations, killed_at: tuple[int, ...]) -> str:
    trial = SimpleNamespace(config={"trial": plan.name})

    def evaluated(step: int, metrics: dict[str, float]) -> None:
        if next(evaluations) in killed_at:
            raise _KilledError
        result = {"step": step, "top1_error": metrics["val/top1_error"]}
        if scheduler.on_trial_result(None, trial, result) == "STOP":  # pyrefly: ignore
            raise _StoppedEarlyError

    plan.claim()
    try:
        run_worker(plan, worker, evaluated=evaluated)
    except _StoppedEarlyError:
        plan.directory.write_json("summary.json", {"status": "stopped"})
        return "stopped"
    return "finished"


def test_a_real_sweep_that_is_killed_stops_the_same_trials(recipe: Recipe, execution: Execution):
    def plans(sweep: str) -> list[Plan]:
        each = dataclasses.replace(execution, storage=f"{execution.storage}/{sweep}")
        recipes = [dataclasses.replace(recipe, epochs=4, seed=seed) for seed in (0, 1, 2, 3)]
        return [
            prepare(each_recipe, dataclasses.replace(each, name=f"seed{each_recipe.seed}"), job="test")
            for each_recipe in recipes
        ]

    whole, broken = plans("whole"), plans("broken")
    ends = _train(whole)
    assert set(ends.values()) == {"finished", "stopped"}
    # In the first trial, and at the first evaluation of each of the others.
    firsts = [4]
    for plan in whole[1:-1]:
        firsts.append(firsts[-1] + len(history(read_journal(plan.directory))["val/top1_error"]))
    killed_at = (1, *(first + place + 1 for place, first in enumerate(firsts)))
    assert _train(broken, killed_at) == ends
    for one, other in zip(whole, broken, strict=True):
        sessions = sum(isinstance(record, Session) for record in read_journal(other.directory))
        assert sessions == 2
        errors = [history(read_journal(plan.directory))["val/top1_error"] for plan in (one, other)]
        assert [(step, error) for step, _, error in errors[0]] == [(step, error) for step, _, error in errors[1]]
