"""Delivers to MLflow what it missed while it was down, or complete runs to another server.

    python jobs/deliver_tracking.py --run ~/dist_resnet/NAME
    python jobs/deliver_tracking.py --run ~/dist_resnet/*/ --tracking-uri https://mlflow.example.org

Points come from the run's journal; each arrives once, with its step and time, however often this is called.
Exit codes: 0 all delivered, 1 incomplete, 2 bad input, 130 Ctrl-C.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_resnet import cli, logs

if TYPE_CHECKING:
    from dist_resnet.tracking.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Options:
    run: tuple[str, ...]
    """The runs' directories, STORAGE/NAME: local paths or object-store URIs. Other directories are skipped with a
    line."""
    tracking_uri: str | None = None
    """MLflow tracking server. Unset: MLFLOW_TRACKING_URI, or the sqlite file next to the run (~/dist_resnet/mlflow.db
    for runs on an object store)."""
    experiment: str | None = None
    """MLflow experiment for runs that are new there or whose own was deleted. Unset: each run's own."""
    minutes: float = 10.0
    """Minutes to retry each run if MLflow does not answer."""


def main() -> None:
    """Delivers the runs and prints for each whether it arrived."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    with cli.bad_input_exits():
        arrived = _deliver_all(options)
    sys.exit(0 if arrived else 1)


def _deliver_all(options: Options) -> bool:
    """Whether all runs arrived. Stops at the first if the server refuses every run."""
    # Imported late, so that --help does not wait for MLflow.
    from dist_resnet.storage.uri import without_credentials
    from dist_resnet.tracking.mlflow.address import store_of
    from dist_resnet.tracking.mlflow.refusal import RefusedError
    from dist_resnet.tracking.run_directory import RunDirectory

    outcomes = []
    for run in options.run:
        directory = RunDirectory(run)
        uri = store_of(directory, options.tracking_uri)
        try:
            outcomes.append(_deliver(directory, uri, options))
        except FileNotFoundError as error:
            print(error)
            continue
        except RefusedError as refusal:
            outcomes.append(False)
            print(f"{run}: MLflow at {without_credentials(uri)} refuses: {refusal}", file=sys.stderr)
            if refusal.of_store:
                break
            continue
        print(f"{run}: {'delivered' if outcomes[-1] else 'incomplete; run the command again'}")
    if not outcomes:
        raise ValueError("none of these is a tracked run; give directories STORAGE/NAME")
    return all(outcomes)


def _deliver(directory: "RunDirectory", uri: str, options: Options) -> bool:
    """Whether one run arrived; shows the progress on standard error."""
    from dist_resnet.launch.progress import DeliveryProgress
    from dist_resnet.tracking.mlflow.delivery import deliver

    progress = DeliveryProgress(directory.name)
    try:
        return deliver(directory, uri, wait_seconds=60 * options.minutes, experiment=options.experiment, watch=progress)
    finally:
        progress.close()


if __name__ == "__main__":
    cli.run(main, advice="the same command delivers the rest")
