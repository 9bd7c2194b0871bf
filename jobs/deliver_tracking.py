"""Brings MLflow what it did not take while it was down, or a run's whole story to another server.

    python jobs/deliver_tracking.py --run ~/dist_resnet/NAME
    python jobs/deliver_tracking.py --run ~/dist_resnet/*/ --tracking-uri https://mlflow.example.org

A run's own journal is what counts; every point arrives once, with its own step and time, however often this is called.
"""

import sys
from dataclasses import dataclass

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    run: tuple[str, ...]
    """Directories of runs, STORAGE/NAME: local paths, s3:// or gs:// URIs. Others are named and passed over."""
    tracking_uri: str | None = None
    """MLflow tracking server; by default MLFLOW_TRACKING_URI, else the sqlite file beside the run, or
    ~/dist_resnet/mlflow.db where that is on s3:// or gs://."""
    minutes: float = 10.0
    """How long to try for each run."""


def main() -> None:
    """Reads the options, delivers, says for each run whether it arrived."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help need not wait for MLflow.
    from dist_resnet.tracking.address import store_of
    from dist_resnet.tracking.delivery import deliver
    from dist_resnet.tracking.storage import RunDirectory

    outcomes = []
    with cli.bad_input_exits():
        for run in options.run:
            directory = RunDirectory(run)
            uri = store_of(directory, options.tracking_uri)
            try:
                arrived = deliver(directory, uri, wait_seconds=60 * options.minutes)
            except FileNotFoundError as error:
                print(error)
                continue
            outcomes.append(arrived)
            print(f"{run}: {'all is there' if arrived else 'not all has arrived; call this again'}")
        if not outcomes:
            raise ValueError("none of these is a run that was tracked; give directories STORAGE/NAME")
    sys.exit(0 if all(outcomes) else 1)


if __name__ == "__main__":
    cli.run(main)
