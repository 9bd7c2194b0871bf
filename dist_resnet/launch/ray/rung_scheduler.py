"""A sweep's rungs as a scheduler of Ray Tune."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dist_resnet.launch.ray.rungs import Rungs


class RungScheduler(FIFOScheduler):
    """Stops the trials that rungs stop, each at its next evaluation before the run's end."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()
        self._rungs = rungs
        self._position = {name: position for position, name in enumerate(rungs.order)}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Waits for a trial, also for one that restarts after its process died."""
        self._rungs.join(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Stops waiting for a trial that died."""
        self._rungs.leave(trial.config["trial"])

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        """Stops waiting for a trial that has ended."""
        self._rungs.leave(trial.config["trial"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        """Stops a trial that is behind, unless it has reached its end, which it must still record."""
        name = trial.config["trial"]
        self._rungs.record(name, result["step"], result["top1_error"])
        is_behind = result["step"] < self._rungs.num_steps and name in self._rungs.stopped()
        return TrialScheduler.STOP if is_behind else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first waiting trial in the sweep's order: Tune moves one whose process died behind all others."""
        waiting = [trial for trial in tune_controller.get_trials() if trial.status == Trial.PENDING]
        return min(waiting, key=lambda trial: self._position[trial.config["trial"]], default=None)
