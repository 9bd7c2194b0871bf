"""Many small runs as the trials of one Ray Tune experiment: one process, and a share of a GPU or some cores, each.

A trial is a plain Tune function around the same `run_worker` as any run, on a run directory of its own. What a trial
has done stands in its directory; Tune only starts processes, and starts those that die again. So a sweep is continued
by a new experiment over the runs that have no end yet, not by `Tuner.restore`: Tune's own record of trials is written
every few seconds and could only be staler than the journals and checkpoints.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from dist_resnet.launch.measure import measure_step
from dist_resnet.launch.plan import Plan
from dist_resnet.launch.ray.cluster import (
    connect,
    disconnect,
    first_line,
    hold,
    resources,
)
from dist_resnet.launch.ray.rung_scheduler import RungScheduler
from dist_resnet.launch.ray.rungs import Rungs
from dist_resnet.launch.ray.telemetry import WorkerTelemetry
from dist_resnet.launch.resources import settle_trial
from dist_resnet.launch.stopping import stopping_on_signals
from dist_resnet.launch.worker import run_worker
from dist_resnet.recipe import Execution
from dist_resnet.tracking import stop
from dist_resnet.tracking.run_directory import RunDirectory
from dist_resnet.train.precision import check_precision
from dist_resnet.worker import Worker

logger = logging.getLogger(__name__)
# It misses, trial by trial, the files that are switched off (TUNE_DISABLE_AUTO_CALLBACK_LOGGERS).
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

_FOLDER = "ray"
_MOST_TRIALS_PER_GPU = 8
# Of a GPU's memory; the rest is for fragmentation and what else runs on it.
_USABLE = 0.92
# What a process holds on a GPU before its first tensor: the CUDA context and cuDNN's and cuBLAS's workspaces.
_CONTEXT_BYTES = 3 << 28
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a trial takes of the cluster."""

    cpus: int
    gpus: float = 0.0


def allot(
    plans: Sequence[Plan], execution: Execution, *, trials_per_gpu: int | None = None
) -> tuple[Execution, list[Share]]:
    """Connects to Ray and settles on which device and with which share of it each plan is a trial.

    So many trials share a GPU, by default as many as fit. On GPUs a step of every different plan is measured first, on
    a GPU of the cluster. Raises ValueError where more is asked for than the cluster has.
    """
    connect(execution)
    found = resources()
    execution = settle_trial(execution, found)
    _check_fraction(execution, trials_per_gpu)
    check_precision(execution)
    cpus = execution.cpus_per_worker or 1
    if execution.device == "cpu":
        logger.info("%d trials at once, each on %d CPU cores", min(len(plans), found.room(cpus, with_gpu=False)), cpus)
        return execution, [Share(cpus=cpus)] * len(plans)
    needs, gpu_bytes = _measure_memory(plans, execution)
    shares = []
    for plan, need in zip(plans, needs, strict=True):
        most = min(_MOST_TRIALS_PER_GPU, found.cores_per_gpu // cpus)
        number = fitting(plan.name, trials_per_gpu, need, gpu_bytes, most)
        # Rounded down to Ray's four digits, so that three thirds fit.
        shares.append(Share(cpus=cpus, gpus=int(10_000 / number) / 10_000))
        logger.info(
            "%s: %d such trials share a GPU; each needs %.2f GiB of its %.1f GiB (measured)",
            *(plan.name, number, need / _GIB, gpu_bytes / _GIB),
        )
    return execution, shares


def check_trials(execution: Execution, *, trials_per_gpu: int | None = None) -> None:
    """Raises ValueError where trials cannot run as asked on any cluster."""
    if execution.worker_range != (1, 1):
        raise ValueError(
            f"execution.workers is 1 for a trial, got {execution.workers}; as many trials run at once as the cluster "
            "has room for"
        )
    if trials_per_gpu is not None and trials_per_gpu < 1:
        raise ValueError(f"--trials-per-gpu must be at least 1, got {trials_per_gpu}")
    _check_fraction(execution, trials_per_gpu)


def _check_fraction(execution: Execution, trials_per_gpu: int | None) -> None:
    """Raises ValueError where trials that are to share a GPU run on the CPU."""
    if execution.device == "cpu" and trials_per_gpu is not None:
        raise ValueError(
            f"--trials-per-gpu {trials_per_gpu} cannot fit: the trials run on the CPU; leave it out, or use a cluster "
            "with a GPU"
        )


def fitting(name: str, asked: int | None, need: int, gpu_bytes: int, most: int) -> int:
    """How many trials that need so many bytes share a GPU: the number asked for, else as many as fit up to `most`.

    Raises ValueError where that many cannot fit.

    >>> fitting("trial", None, 10 << 30, 80 << 30, 8)
    7
    """
    room = int(gpu_bytes * _USABLE // need)
    if (asked or 1) > room:
        raise ValueError(
            f"--trials-per-gpu {asked or 1} cannot fit: {name} needs {need / _GIB:.2f} GiB and a GPU has "
            f"{gpu_bytes / _GIB:.1f} GiB, of which {_USABLE:.0%} are used; at most {room} fit"
        )
    return asked or max(1, min(room, most))


def fit(
    plans: Sequence[Plan],
    shares: Sequence[Share],
    directory: RunDirectory,
    *,
    report: Callable[[str, str], None],
    rungs: Rungs | None = None,
) -> bool:
    """Runs every plan as a trial and returns once all have ended, one way or another, or been stopped: whether it was
    asked to stop.

    `report` is called with a plan's name and `started`, `retried`, `ended` or `died`. Trials that trail behind, as
    `rungs` say, are stopped. The first Ctrl-C or SIGTERM, or a `stop.request` on the sweep's directory, has the trials
    that run save checkpoints and no other be begun. A second signal stops Ray at once and raises KeyboardInterrupt.
    """
    by_name = {plan.name: plan for plan in plans}
    watch = stop.StopWatch(directory)
    share_of = dict(zip(by_name, shares, strict=True))

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        share = share_of[config["trial"]]
        return tune.PlacementGroupFactory([{"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})])

    trainable = tune.with_parameters(_run_trial, sweep=directory, plans=by_name, early_stop=rungs is not None)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            scheduler=RungScheduler(rungs) if rungs else None,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
            # On the CPU a process goes on to the next trial, for starting one takes long; on a GPU its end is what
            # surely frees its memory.
            reuse_actors=plans[0].execution.device == "cpu",
        ),
        run_config=tune.RunConfig(
            name=_FOLDER,
            storage_path=directory.uri,
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


def _run_trial(config: dict[str, Any], *, sweep: RunDirectory, plans: dict[str, Plan], early_stop: bool) -> None:
    """A trial's whole life, also after it has died once."""
    plan = plans[config["trial"]]
    plan.claim()
    stop.withdraw(plan.directory)
    # In this order: `_Stopper` asks the sweep before it asks its trials, so that none is missed in between.
    if sweep.exists(stop.FILE):
        return
    device = torch.device("cuda" if plan.execution.device == "gpu" else "cpu")
    worker = Worker(rank=0, world_size=1, device=device)
    with WorkerTelemetry(label(plan), worker.rank) as telemetry:
        run_worker(plan, worker, evaluated=_report if early_stop else None, observer=telemetry)


def label(plan: Plan) -> str:
    """SWEEP/TRIAL: what a trial is called among the runs of a cluster."""
    return f"{plan.directory.parent.name}/{plan.name}"


def _report(step: int, metrics: dict[str, float]) -> None:
    tune.report({"step": step, "top1_error": metrics["val/top1_error"]})


def _name_of(trial: Any) -> str:
    return trial.config["trial"]


class _TrialReporter(TrialProgressCallback):
    """Passes on what becomes of trials, in the place of Tune's own callback, which prints it."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        self._report = report

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks into the experiment's folder; nobody reads that.

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **_: Any) -> None:
        """Says nothing."""

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "started")

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "retried")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "ended")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._report(_name_of(trial), "died")


class _AllStoppedError(BaseException):
    """The way out of Tune's loop, which takes every Exception for a fault."""


class _Stopper(tune.Callback):
    """Passes on to the running trials that the sweep was asked to stop, and ends it once they have stopped."""

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
        # It waits for its place again, and finds what the sweep was asked when it has one.
        self._running.discard(_name_of(trial))

    def on_step_end(self, iteration: int, trials: list, **_: Any) -> None:
        """Raises _AllStoppedError where all that ran when they were asked have stopped."""
        if not self._watch.asked():
            return
        if self._stopping is None:
            self._stopping = self._ask()
        elif not self._stopping & self._running:
            raise _AllStoppedError

    def _ask(self) -> set[str] | None:
        """The trials that were asked, or None where they have to be asked again."""
        try:
            for name in self._running:
                with contextlib.suppress(FileNotFoundError):  # it has yet to begin, and will find the sweep's
                    stop.request(self._plans[name].directory)
        except OSError as error:
            logger.warning("the trials cannot be asked to stop yet: %s", error)
            return None
        return set(self._running)


def _measure_memory(plans: Sequence[Plan], execution: Execution) -> tuple[list[int], int]:
    """Bytes that each plan needs on a GPU, and the bytes that the GPU has; measured in a process that ends with it."""
    # Seeds do not change what fits.
    keys = [dataclasses.replace(plan.recipe, seed=0).fingerprint() for plan in plans]
    different = dict(zip(keys, plans, strict=True))
    measure = ray.remote(num_gpus=1, num_cpus=1, max_calls=1)(_peak_memory)
    try:
        peaks, gpu_bytes = ray.get(measure.remote(list(different.values()), execution))
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"a step of the sweep's networks cannot be measured on a GPU of the cluster ({first_line(error)}); use "
            "GPUs with more memory, or --execution.device cpu"
        ) from error
    needs = dict(zip(different, peaks, strict=True))
    return [needs[key] for key in keys], gpu_bytes


def _peak_memory(plans: Sequence[Plan], execution: Execution) -> tuple[list[int], int]:
    device = torch.device("cuda")
    needs = []
    for plan in plans:
        cost = measure_step(plan.recipe, execution, device, num_steps=1)
        images = (plan.train.num_images + plan.validation.num_images) * 3 * plan.recipe.augment.size**2
        needs.append(cost.memory_bytes + images + _CONTEXT_BYTES)
    return needs, torch.cuda.get_device_properties(device).total_memory


def hardware() -> str:
    """What the cluster has, such as `8 CPU cores, 1 x H200`."""
    return str(resources())
