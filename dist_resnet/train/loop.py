"""The training loop: trains a recipe's model on its images and resumes wherever the run was stopped.

It uses neither Ray nor MLflow. Every worker runs it; rank 0 also writes the journal and the checkpoints.
"""

import logging
import time
from collections.abc import Iterator

import torch

from dist_resnet.data.input.batch import Batch
from dist_resnet.data.loader import EvaluationImages, TrainingImages
from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.tracking import provenance, records
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.recorder import Recorder
from dist_resnet.tracking.stop import StopWatch
from dist_resnet.train import checkpoint
from dist_resnet.train.agreement import Agreement
from dist_resnet.train.context import RunContext
from dist_resnet.train.damage import DamageRecord, TooDamagedError
from dist_resnet.train.evaluate import Evaluator
from dist_resnet.train.freeze import freeze
from dist_resnet.train.metrics import DivergedError, StepMeter, WatchedBatches
from dist_resnet.train.optimizer import build_optimizer
from dist_resnet.train.precision import configure_backend, loss_scaler
from dist_resnet.train.recompute import recompute_units
from dist_resnet.train.resume import resume
from dist_resnet.train.run_images import RunImages
from dist_resnet.train.schedule import learning_rate, num_steps
from dist_resnet.train.state import TrainState
from dist_resnet.train.step import TrainStep
from dist_resnet.train.system import System
from dist_resnet.train.timing import WorkerTimes
from dist_resnet.train.writer import CheckpointWriter
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_EVALUATION_EVENTS = 5.0


class StopRequestedError(Exception):
    """The run was asked to stop; a checkpoint of its state is being written."""


def train(context: RunContext, training: TrainingImages, validation: EvaluationImages) -> None:
    """Trains to the recipe's end, from the newest checkpoint in the run's directory if there is one.

    The journal ends with `Finished`, `Diverged`, `TooDamaged` or, after `stop.request`, `Stopped`. Raises OSError once
    the storage has failed for longer than the execution allows, ValueError if all checkpoints are damaged.
    """
    session = Session(context, training, validation)
    try:
        session.run()
    except DivergedError as error:
        logger.error("stopped: %s", error)
        session.end(records.Diverged(step=error.step))
    except TooDamagedError as error:
        logger.error("stopped: %s", error)
        session.end(records.TooDamaged(step=session.step, reason=str(error)))
    except StopRequestedError:
        session.end(records.Stopped(step=session.step))
    finally:
        session.close()


class Session:
    """One start of the training loop on one worker, from the newest checkpoint to the end."""

    def __init__(self, context: RunContext, training: TrainingImages, validation: EvaluationImages) -> None:
        recipe, execution, worker, directory = context.recipe, context.execution, context.worker, context.directory
        self._context, self._recipe, self._execution, self._worker = context, recipe, execution, worker
        self._training, self._validation = training, validation
        self._total = num_steps(recipe.epochs, training.steps_per_epoch)
        self._evaluate_every = max(1, round(recipe.evaluation.every_epochs * training.steps_per_epoch))
        self._metrics: dict[str, float] = {}
        self._reported_at = 0.0
        self._entered_at = time.time()

        self._state = create_state(recipe, execution, worker)
        self._step = TrainStep(recipe, execution, worker, self._state)
        resume(self._state, context)

        self._journal = context.patiently(
            lambda: Recorder.of_rank(worker.rank, directory, context.observer), "cannot be read"
        )
        earlier = context.patiently(lambda: read_journal(directory), "cannot be read") if worker.rank == 0 else []
        self._meter = StepMeter(worker, self._journal)
        self._times = WorkerTimes(
            worker,
            self._journal,
            self._step.clock,
            ghost_batches=training.ghosts_per_step,
            seconds_compared=context.intervals.comparisons,
        )
        self._damage = DamageRecord(
            worker, self._journal, images=training.num_images, fraction=execution.max_damaged_fraction, records=earlier
        )
        self._evaluator = Evaluator(
            model=self._state.model,
            images=validation,
            worker=worker,
            report=self._report_evaluation,
            name_damaged=self._damage.name_validation,
        )
        self._system, self._run_images = System(worker.device), RunImages.of_rank(worker.rank, directory)
        self._writer = self._checkpoint_writer(earlier) if worker.rank == 0 else None
        self._stop_watch = StopWatch(directory) if worker.rank == 0 else None
        self._agreement = Agreement(
            worker,
            save_every_seconds=execution.checkpoints.seconds,
            stop=lambda: self._stop_watch is not None and self._stop_watch.asked(),
            warned=context.warned,
            intervals=context.intervals,
        )

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._state.step

    def run(self) -> None:
        """Takes the remaining steps. Raises DivergedError, TooDamagedError, and StopRequestedError after a request."""
        self._journal.event(self._session_record())
        # A run that stopped during an evaluation resumes from the checkpoint before it.
        if self._is_evaluated():
            self._evaluate()
        for epoch, first_step, last_step in _epochs(self._state.step, self._total, self._training.steps_per_epoch):
            self._train_epoch(epoch, first_step, last_step)
        self.end(self._finished_record())

    def end(self, ending: records.Ending) -> None:
        """Commits pending checkpoints and records, with the ending as the journal's last record."""
        if self._writer:
            self._writer.wait(self._context.watchdog.alive)
        self._journal.event(ending)
        self._context.patiently(self._journal.commit, "cannot be written")

    def close(self) -> None:
        """Ends this worker's threads."""
        for part in (self._writer, self._stop_watch, self._journal):
            if part:
                part.close()

    def _train_epoch(self, epoch: int, first_step: int, last_step: int) -> None:
        """Takes the steps from `first_step` up to `last_step` of an epoch, with their checkpoints and evaluations."""
        recipe, execution, state = self._recipe, self._execution, self._state
        images = self._training.epoch(epoch, first_step)
        batches = WatchedBatches(self._step.clock.waiting(images), self._note)
        self._meter.start()
        for _ in range(first_step, last_step):
            # Forward and backward over this worker's ghost batches, one reduction, one update.
            rate = learning_rate(recipe.schedule, state.step, self._total)
            totals = self._step(batches, rate)
            self._context.watchdog.alive()
            waited = batches.seconds()
            self._meter.add(state.step, totals, images=recipe.global_batch, learning_rate=rate, data_seconds=waited)

            # Record every step's numbers in blocks, always before a checkpoint.
            decision = self._agreement.after_step()
            scheduled = self._is_evaluated() or state.step % execution.checkpoints.every == 0
            saved = scheduled or decision.save or decision.stop
            if saved or state.step % execution.log_every == 0:
                if self._meter.flush():
                    self._damage.report(state.step)
                self._times.share(state.step)
                self._journal.metrics(state.step, self._system.sample())

            # Save before evaluating: repeating an evaluation is cheaper than repeating steps.
            if saved:
                self._save()
            if decision.stop:
                raise StopRequestedError
            if self._is_evaluated():
                self._evaluate()
            if saved:
                self._meter.start()
        images.close()

    def _note(self, batch: Batch) -> None:
        """Notes a ghost batch that the step takes."""
        if self._state.step == 0 and batch.ghost == 0:
            self._run_images.augmented_batch(batch.images, self._recipe.data)
        self._damage.add(batch)

    def _is_evaluated(self) -> bool:
        """Whether an evaluation follows the last step."""
        step = self._state.step
        return step == self._total or (step > 0 and step % self._evaluate_every == 0)

    def _save(self) -> None:
        """Hands a copy of the state to the writer."""
        self._agreement.saved()
        if self._writer:
            self._journal.metrics(self._state.step, {"time/checkpoint_seconds": self._writer.save(self._state)})

    def _checkpoint_writer(self, earlier: list[records.Record]) -> CheckpointWriter:
        execution = self._execution
        return CheckpointWriter(
            self._context.directory,
            self._journal,
            keep=execution.checkpoints.keep,
            errors={step: error for step, _, error in history(earlier).get("val/top1_error", [])},
            patience_seconds=self._context.patience_seconds,
        )

    def _evaluate(self) -> None:
        """Evaluates at every crop with rank 0's BN statistics, and records the errors."""
        self._reported_at = time.monotonic()
        self._step.statistics.broadcast(self._worker)
        classes = self._recipe.model.num_outputs
        confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self._worker.device)
        self._metrics = self._evaluator.at_crops(self._recipe.evaluation, confusion)
        self._run_images.confusion(confusion)
        self._journal.metrics(self._state.step, self._metrics)
        self._journal.flush()
        if self._writer:
            self._writer.note_error(self._state.step, self._metrics["val/top1_error"])
        if self._context.evaluated:
            self._context.evaluated(self._state.step, self._metrics)

    def _report_evaluation(self, crop: int, images: int) -> None:
        """Records the progress of a long evaluation and keeps the watchdog quiet."""
        self._context.watchdog.alive()
        if time.monotonic() - self._reported_at >= _SECONDS_BETWEEN_EVALUATION_EVENTS:
            self._reported_at = time.monotonic()
            share = self._validation.num_images // self._worker.world_size
            self._journal.event(records.Evaluating(step=self._state.step, crop=crop, images=images, share=share))

    def _session_record(self) -> records.Session:
        """This session's length, workers, hardware, precision and commit."""
        device = self._worker.device
        cuda = device.type == "cuda"
        return records.Session(
            start_step=self._state.step,
            total_steps=self._total,
            steps_per_epoch=self._training.steps_per_epoch,
            global_batch=self._recipe.global_batch,
            world_size=self._worker.world_size,
            begun=self._entered_at,
            precision=self._execution.precision,
            commit=provenance.commit(),
            device=torch.cuda.get_device_name(device) if cuda else _cpu(),
            machines=self._times.machines,
        )

    def _finished_record(self) -> records.Finished:
        """The finished run's results, once its last checkpoint is committed; empty on ranks other than 0."""
        if not self._writer:
            return records.Finished()
        self._writer.wait(self._context.watchdog.alive)
        folder = checkpoint.folder_of(self._state.step)
        manifest = self._context.patiently(
            lambda: self._context.directory.read_json(f"{folder}/{checkpoint.MANIFEST}"), "cannot be read"
        )
        assert manifest is not None
        return records.Finished(
            steps=self._state.step,
            epochs=self._state.step / self._training.steps_per_epoch,
            top1_error=self._metrics["val/top1_error"],
            top5_error=self._metrics["val/top5_error"],
            images_per_second=self._meter.images_per_second,
            model=f"{folder}/{checkpoint.WEIGHTS}",
            weights_sha256=manifest[checkpoint.WEIGHTS]["sha256"],
        )


def create_state(recipe: Recipe, execution: Execution, worker: Worker) -> TrainState:
    """The state before the first step: weights drawn from the recipe's seed, the same on every worker.

    Also applies the execution's settings to torch, so that training, evaluation and benchmarks share them.
    """
    configure_backend(execution)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model).to(worker.device)
    if execution.performance.channels_last:
        model = model.to(memory_format=torch.channels_last)
    freeze(model, recipe.initial.freeze)
    optimizer = build_optimizer(recipe.optimizer, model, head_factor=recipe.schedule.head_factor)
    if execution.performance.recompute:
        recompute_units(model)
    return TrainState(model=model, optimizer=optimizer, scaler=loss_scaler(execution, worker.device))


def _epochs(step: int, total: int, steps_per_epoch: int) -> Iterator[tuple[int, int, int]]:
    """(epoch, first step, last step + 1) of every epoch with steps left; steps count within the epoch."""
    while step < total:
        epoch, first = divmod(step, steps_per_epoch)
        last = min(steps_per_epoch, total - epoch * steps_per_epoch)
        yield epoch, first, last
        step = epoch * steps_per_epoch + last


def _cpu() -> str:
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)} each"
