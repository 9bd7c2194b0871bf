"""Brings MLflow what it did not take while it was down, or a run's whole story to another server.

    python jobs/deliver_tracking.py --run ~/dist_resnet/NAME
    python jobs/deliver_tracking.py --run ~/dist_resnet/*/ --tracking-uri https://mlflow.example.org

A run's own journal is what counts; every point arrives once, with its own step and time, however often this is called.
Exits with 0 if all was delivered, 1 if not, 2 on bad input, 130 after Ctrl-C.
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
    """Directories of runs, STORAGE/NAME: local paths or URIs of object stores. Others are named and passed over."""
    tracking_uri: str | None = None
    """MLflow tracking server; by default MLFLOW_TRACKING_URI, else the sqlite file beside the run, or
    ~/dist_resnet/mlflow.db where that is on an object store."""
    experiment: str | None = None
    """MLflow experiment for runs that are not there yet, or whose own was deleted; by default each run's own."""
    minutes: float = 10.0
    """How long to try for each run if MLflow does not answer."""


def main() -> None:
    """Reads the options, delivers, says for each run whether it arrived."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    with cli.bad_input_exits():
        arrived = _deliver_all(options)
    sys.exit(0 if arrived else 1)


def _deliver_all(options: Options) -> bool:
    """Delivers run after run; whether all arrived. A server that refuses every run ends it."""
    # Imported late, so that --help need not wait for MLflow.
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
        raise ValueError("none of these is a run that was tracked; give directories STORAGE/NAME")
    return all(outcomes)


def _deliver(directory: "RunDirectory", uri: str, options: Options) -> bool:
    """Delivers one run, with its progress on standard error; whether it arrived."""
    from dist_resnet.launch.progress import DeliveryProgress
    from dist_resnet.tracking.mlflow.delivery import deliver

    progress = DeliveryProgress(directory.name)
    try:
        return deliver(directory, uri, wait_seconds=60 * options.minutes, experiment=options.experiment, watch=progress)
    finally:
        progress.close()


if __name__ == "__main__":
    cli.run(main, advice="the same command delivers the rest")
