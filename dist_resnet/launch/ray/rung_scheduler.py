"""The rungs of a sweep as a scheduler of Ray Tune."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dist_resnet.launch.ray.rungs import Rungs


class RungScheduler(FIFOScheduler):
    """Has Ray Tune stop the trials that rungs stop, each at its next evaluation before the run's end."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()
        self._rungs = rungs
        self._place = {name: place for place, name in enumerate(rungs.order)}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Waits for a trial, also for one whose process died and that starts again."""
        self._rungs.join(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Waits no longer for a trial that died."""
        self._rungs.leave(trial.config["trial"])

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        """Waits no longer for a trial that has ended."""
        self._rungs.leave(trial.config["trial"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        """Judges a trial. One that has come to its end is left to write it down."""
        name = trial.config["trial"]
        self._rungs.record(name, result["step"], result["top1_error"])
        is_behind = result["step"] < self._rungs.num_steps and name in self._rungs.stopped()
        return TrialScheduler.STOP if is_behind else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first waiting trial in the sweep's order: Tune puts one whose process died behind all others."""
        waiting = [trial for trial in tune_controller.get_trials() if trial.status == Trial.PENDING]
        return min(waiting, key=lambda trial: self._place[trial.config["trial"]], default=None)
