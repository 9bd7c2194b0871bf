"""The training loop. Oracle: an uninterrupted run of the same recipe, and one worker against two and three."""

import dataclasses
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle.images import real

from dist_resnet.data.input.decoders import InputOptions
from dist_resnet.data.loader import EvaluationImages, TrainingImages
from dist_resnet.launch import local
from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Augment, Checkpoints, Data, Evaluation, Execution, Model, Recipe, Schedule
from dist_resnet.tracking import provenance, stop
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.records import Diverged, Finished, Session, Stopped
from dist_resnet.train.agreement import Intervals
from dist_resnet.train.context import RunContext
from dist_resnet.train.loop import train
from dist_resnet.train.watchdog import Watchdog
from dist_resnet.worker import Worker

WORKER = Worker(rank=0, world_size=1, device=torch.device("cpu"))


class _StoppedError(Exception):
    pass


def _plan(recipe: Recipe, execution: Execution, **changes) -> Plan:
    plan = prepare(recipe, dataclasses.replace(execution, **changes), job="test")
    plan.claim()
    return plan


def _images(plan: Plan) -> tuple[TrainingImages, EvaluationImages]:
    options = InputOptions.of(plan.execution)
    return (
        TrainingImages(plan.recipe, plan.train, WORKER, options),
        EvaluationImages(plan.recipe, plan.validation, WORKER, options),
    )


def _context(plan: Plan) -> RunContext:
    return RunContext(
        recipe=plan.recipe,
        execution=plan.execution,
        worker=WORKER,
        directory=plan.directory,
        watchdog=Watchdog(plan.execution.recovery.hang_seconds),
    )


def _train_until(plan: Plan, step: int) -> None:
    """Trains and dies without warning before the step numbered `step`."""
    training, validation = _images(plan)
    whole, left = training.epoch, [step]

    def dying(epoch: int, start_step: int = 0):
        left[0] -= start_step if epoch == 0 else 0
        for batch in whole(epoch, start_step):
            if batch.ghost == 0:
                if left[0] == 0:
                    raise _StoppedError
                left[0] -= 1
            yield batch

    training.epoch = dying
    with pytest.raises(_StoppedError):
        train(_context(plan), training, validation)
    training.close()


def _last(plan: Plan) -> Any:
    return read_journal(plan.directory)[-1]


@pytest.mark.parametrize("kind", ["pad", "scale"])
def test_a_run_that_died_in_mid_epoch_ends_bit_identical_to_one_that_did_not(
    recipe: Recipe, shard_recipe: Recipe, execution: Execution, kind
):
    recipe = recipe if kind == "pad" else shard_recipe
    whole, broken = (_plan(recipe, execution, name=name) for name in ("whole", "broken"))
    run_worker(whole, WORKER)
    _train_until(broken, 5)
    run_worker(broken, WORKER)
    assert isinstance(_last(whole), Finished)
    assert _last(broken).weights_sha256 == _last(whole).weights_sha256
    sessions = [record for record in read_journal(broken.directory) if isinstance(record, Session)]
    assert [session.start_step for session in sessions] == [0, 4]
    told = {(session.precision, session.commit) for session in sessions}
    assert told == {(execution.precision, provenance.commit())}
    losses = [
        [(step, value) for step, _, value in history(read_journal(plan.directory))["train/loss"]]
        for plan in (whole, broken)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_died_while_evaluating_evaluates_again(recipe: Recipe, execution: Execution):
    plan = _plan(recipe, execution, checkpoints=Checkpoints(every=100))
    training, validation = _images(plan)

    def dying(crop: int, shorter_side: int):
        raise _StoppedError
        yield

    validation.center_crops = dying
    with pytest.raises(_StoppedError):
        train(_context(plan), training, validation)
    run_worker(plan, WORKER)
    assert [step for step, _, _ in history(read_journal(plan.directory))["val/loss"]] == [3, 6]


@pytest.mark.parametrize("source", ["generated", pytest.param("real", marks=pytest.mark.slow)])
def test_two_and_three_workers_take_the_steps_of_one(shard_recipe: Recipe, execution: Execution, source):
    steps_per_epoch = 3
    if source == "real":
        shard_recipe, steps_per_epoch = _on_real_images(shard_recipe), 500 // 32
    recipe = dataclasses.replace(shard_recipe, epochs=20 / steps_per_epoch, schedule=Schedule(learning_rate=0.01))
    losses = {}
    for workers in (1, 2, 3):
        plan = _plan(recipe, execution, name=f"on-{workers}", workers=workers)
        local.start_workers(plan)
        points = history(read_journal(plan.directory))
        losses[workers] = torch.tensor([value for _, _, value in points["train/loss"]])
    assert len(losses[1]) == 20
    # The same sums in another order: relative differences of 1e-7 in the first step, which training amplifies.
    for workers in (2, 3):
        torch.testing.assert_close(losses[workers][:3], losses[1][:3], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(losses[workers], losses[1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_may_stop_on_any_number_of_workers_and_resume_on_any_other(shard_recipe: Recipe, execution: Execution):
    # Every ordered pair of 1 to 4 workers is next to each other once; two steps on each.
    workers = [1, 2, 1, 3, 1, 4, 2, 3, 2, 4, 3, 4, 1]
    schedule = Schedule(kind="step", learning_rate=0.01, drops=(), warmup=0.0)
    recipe = dataclasses.replace(shard_recipe, epochs=2 * len(workers) / 3, schedule=schedule)
    whole, changing = (_plan(recipe, execution, name=name) for name in ("whole", "changing"))
    local.start_workers(whole)
    for number, count in enumerate(workers, start=1):
        part = dataclasses.replace(
            changing,
            recipe=dataclasses.replace(recipe, epochs=2 * number / 3),
            execution=dataclasses.replace(changing.execution, workers=count),
        )
        local.start_workers(part)
    sessions = [record for record in read_journal(changing.directory) if isinstance(record, Session)]
    assert [session.world_size for session in sessions] == workers
    assert [session.start_step for session in sessions] == [2 * number for number in range(len(workers))]
    losses = [
        torch.tensor([value for _, _, value in history(read_journal(plan.directory))["train/loss"]])
        for plan in (whole, changing)
    ]
    assert len(losses[0]) == 26
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=2e-4)


def _on_real_images(recipe: Recipe) -> Recipe:
    """The recipe on 500 ImageNet images at 64 pixels."""
    shards = real("imagenet-sample/train-*.parquet").uri
    return dataclasses.replace(
        recipe,
        model=Model(depth=8, num_classes=1000),
        data=Data(train=shards, validation=shards),
        augment=Augment(kind="scale", size=64, shorter_side=(72, 96)),
        evaluation=Evaluation(crops=(64,), shorter_sides=(72,), every_epochs=100),
    )


def test_the_journal_has_every_steps_metrics(recipe: Recipe, execution: Execution):
    plan = _plan(recipe, execution)
    run_worker(plan, WORKER)
    points = history(read_journal(plan.directory))
    for key in (
        "train/loss",
        "train/top1_error",
        "schedule/learning_rate",
        "time/data_seconds",
        "time/step_seconds",
        "throughput/images_per_second",
    ):
        assert [step for step, _, _ in points[key]] == [1, 2, 3, 4, 5, 6], key
    for key in ("val/loss", "val/top1_error", "val/top5_error"):
        assert [step for step, _, _ in points[key]] == [3, 6], key
    rates = [value for _, _, value in points["schedule/learning_rate"]]
    assert rates == pytest.approx([0.025 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_a_run_may_be_shorter_than_an_epoch(recipe: Recipe, execution: Execution):
    plan = _plan(dataclasses.replace(recipe, epochs=4 / 3), execution)
    run_worker(plan, WORKER)
    assert _last(plan).steps == 4
    assert [step for step, _, _ in history(read_journal(plan.directory))["val/loss"]] == [3, 4]


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(recipe: Recipe, execution: Execution):
    recipe = dataclasses.replace(recipe, schedule=Schedule(learning_rate=1e30))
    plan = _plan(recipe, execution)
    run_worker(plan, WORKER)
    assert isinstance(_last(plan), Diverged)
    assert not math.isfinite(history(read_journal(plan.directory))["train/loss"][-1][2])


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_and_resumes_bit_identically(recipe: Recipe, execution: Execution):
    recipe = dataclasses.replace(recipe, epochs=40)
    rarely = Checkpoints(every=1000)
    whole, stopped = (_plan(recipe, execution, name=name, checkpoints=rarely) for name in ("whole", "stopped"))
    run_worker(whole, WORKER)
    asking = threading.Timer(1.0, stop.request, args=(stopped.directory,))
    asking.start()
    run_worker(stopped, WORKER)
    asking.join()
    last = _last(stopped)
    assert isinstance(last, Stopped)
    assert 0 < last.step < 120
    stop.withdraw(stopped.directory)
    run_worker(stopped, WORKER)
    sessions = [record for record in read_journal(stopped.directory) if isinstance(record, Session)]
    assert sessions[1].start_step == last.step
    assert _last(stopped).weights_sha256 == _last(whole).weights_sha256


def test_a_run_on_google_storage_resumes_from_its_checkpoint(recipe: Recipe, execution: Execution, gs: str):
    whole, away = _plan(recipe, execution, name="whole"), _plan(recipe, execution, storage=f"{gs}/runs")
    run_worker(whole, WORKER)
    _train_until(away, 4)
    run_worker(away, WORKER)
    sessions = [record for record in read_journal(away.directory) if isinstance(record, Session)]
    assert [session.start_step for session in sessions] == [0, 4]
    assert _last(away).weights_sha256 == _last(whole).weights_sha256


def _train(plan: Plan, **changes) -> None:
    training, validation = _images(plan)
    train(dataclasses.replace(_context(plan), **changes), training, validation)
    training.close()


def test_a_preemption_notice_makes_one_checkpoint_at_once(recipe: Recipe, execution: Execution):
    plan = _plan(dataclasses.replace(recipe, epochs=4), execution, checkpoints=Checkpoints(every=1000))
    warnings = iter([False, True])
    _train(plan, intervals=Intervals(decisions=0.0, preemption_checks=0.0), warned=lambda: next(warnings))
    # After the second check, which follows the second step, and at the ends of the four epochs of three steps.
    assert _checkpoints(plan) == {2, 3, 6, 9, 12}


def test_elapsed_time_makes_checkpoints_too(recipe: Recipe, execution: Execution):
    plan = _plan(recipe, execution, checkpoints=Checkpoints(every=1000, minutes=1e-9))
    _train(plan, intervals=Intervals(decisions=0.0))
    assert _checkpoints(plan) == {1, 2, 3, 4, 5, 6}


def _checkpoints(plan: Plan) -> set[int]:
    """Steps whose state was copied for a checkpoint."""
    return {step for step, _, _ in history(read_journal(plan.directory))["time/checkpoint_seconds"]}


def test_checkpoints_that_are_gone_are_an_error_and_not_a_fresh_start(recipe: Recipe, execution: Execution):
    plan = _plan(recipe, execution)
    _train_until(plan, 5)
    plan.directory.delete("checkpoints")
    with pytest.raises(ValueError, match="records a checkpoint after step 4, but there is none"):
        run_worker(plan, WORKER)


def test_the_loop_imports_neither_ray_nor_mlflow():
    import subprocess
    import sys

    code = (
        "import sys, dist_resnet.train.loop; print([name for name in ('ray', 'mlflow', 'tyro') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
