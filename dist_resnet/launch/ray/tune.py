"""Many small runs as the trials of one Ray Tune experiment, each a process with some cores or a share of a GPU.

A trial is a plain Tune function around the same `run_worker` as any run, with its own run directory, which records all
that it has done. Tune only starts processes, and restarts those that die. So a sweep is resumed by a new experiment
over the unfinished runs, not by `Tuner.restore`: Tune writes its own record of trials every few seconds, so it would
only be older than the journals and checkpoints.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from dist_resnet.launch import gpu
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.ray import storage as ray_storage
from dist_resnet.launch.ray.cluster import disconnect, hold
from dist_resnet.launch.ray.rung_scheduler import RungScheduler
from dist_resnet.launch.ray.rungs import Rungs
from dist_resnet.launch.ray.shares import Share
from dist_resnet.launch.ray.telemetry import WorkerTelemetry
from dist_resnet.launch.stopping import stopping_on_signals
from dist_resnet.launch.worker import run_worker
from dist_resnet.tracking import stop
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)
# It warns for every trial that files are missing which TUNE_DISABLE_AUTO_CALLBACK_LOGGERS turns off.
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

_FOLDER = "ray"


def fit(
    plans: Sequence[Plan],
    shares: Sequence[Share],
    directory: RunDirectory,
    *,
    report: Callable[[str, str], None],
    rungs: Rungs | None = None,
) -> bool:
    """Whether the sweep was asked to stop, after every plan has ended as a trial or was stopped.

    `report` is called with a plan's name and `started`, `retried`, `ended` or `died`. Trials that are behind according
    to `rungs` are stopped. At the first Ctrl-C or SIGTERM, or a `stop.request` on the sweep's directory, the running
    trials save checkpoints and no other starts. A second signal stops Ray at once and raises KeyboardInterrupt.
    """
    by_name = {plan.name: plan for plan in plans}
    watch = stop.StopWatch(directory)
    share_of = dict(zip(by_name, shares, strict=True))

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        share = share_of[config["trial"]]
        return tune.PlacementGroupFactory([{"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})])

    trainable = tune.with_parameters(
        _run_trial, sweep=directory, plans=by_name, shares=share_of, early_stop=rungs is not None
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            scheduler=RungScheduler(rungs) if rungs else None,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
            # On the CPU a process runs trial after trial, because starting one takes long. On a GPU it ends after each,
            # which surely frees its memory.
            reuse_actors=plans[0].execution.device == "cpu",
        ),
        run_config=tune.RunConfig(
            name=_FOLDER,
            **ray_storage.of(directory.uri),
            failure_config=tune.FailureConfig(max_failures=plans[0].execution.recovery.max_failures),
            callbacks=[_TrialReporter(report), _Stopper(by_name, watch)],
            verbose=0,
        ),
    )
    try:
        with stopping_on_signals(directory):
            hold(tuner.fit)
    except _AllStoppedError:
        return True
    except KeyboardInterrupt:
        disconnect()
        raise
    finally:
        watch.close()
    return directory.exists(stop.FILE)


def _run_trial(
    config: dict[str, Any],
    *,
    sweep: RunDirectory,
    plans: dict[str, Plan],
    shares: dict[str, Share],
    early_stop: bool,
) -> None:
    """Trains a trial from its start, or from its newest checkpoint, to its end."""
    plan = plans[config["trial"]]
    plan.claim()
    stop.withdraw(plan.directory)
    # After withdrawing: the sweep's request comes before its trials', so none is missed in between.
    if sweep.exists(stop.FILE):
        return
    # With its number: torch bounds no memory of a GPU without one.
    device = torch.device("cuda", 0) if plan.execution.device == "gpu" else torch.device("cpu")
    gpu.take(device, share=shares[plan.name].gpus)
    worker = Worker(rank=0, world_size=1, device=device)
    with WorkerTelemetry(label(plan), worker.rank) as telemetry:
        run_worker(plan, worker, evaluated=_report if early_stop else None, observer=telemetry)


def label(plan: Plan) -> str:
    """SWEEP/TRIAL, a trial's name among the runs of a cluster."""
    return f"{plan.directory.parent.name}/{plan.name}"


def _report(step: int, metrics: dict[str, float]) -> None:
    tune.report({"step": step, "top1_error": metrics["val/top1_error"]})


def _name_of(trial: Any) -> str:
    return trial.config["trial"]


class _TrialReporter(TrialProgressCallback):
    """Reports how trials start and end; replaces Tune's own callback, which prints it."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        self._report = report

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks into the experiment's folder, which nobody reads.

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **_: Any) -> None:
        """Does nothing."""

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "started")

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "retried")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "ended")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "died")


class _AllStoppedError(BaseException):
    """Ends Tune's loop, which treats every Exception as a failure."""


class _Stopper(tune.Callback):
    """Asks the running trials to stop if the sweep was asked to, and ends the sweep once they have."""

    def __init__(self, plans: dict[str, Plan], watch: stop.StopWatch) -> None:
        self._plans, self._watch = plans, watch
        self._running: set[str] = set()
        self._stopping: set[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as above

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._running.add(_name_of(trial))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._running.discard(_name_of(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._running.discard(_name_of(trial))

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        # It waits for resources again; when it starts, it sees the sweep's request.
        self._running.discard(_name_of(trial))

    def on_step_end(self, iteration: int, trials: list, **_: Any) -> None:
        """Raises _AllStoppedError once all trials that were asked to stop have stopped."""
        if not self._watch.asked():
            return
        if self._stopping is None:
            self._stopping = self._ask()
        elif not self._stopping & self._running:
            raise _AllStoppedError

    def _ask(self) -> set[str] | None:
        """The trials that were asked to stop, or None if this failed and must be repeated."""
        try:
            for name in self._running:
                with contextlib.suppress(FileNotFoundError):  # it has not started yet, and will see the sweep's request
                    stop.request(self._plans[name].directory)
        except OSError as error:
            logger.warning("cannot ask the trials to stop yet: %s", error)
            return None
        return set(self._running)
