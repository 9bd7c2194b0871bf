"""Log set-up of a process: rank, time and level in every line."""

import logging


def configure(rank: int | None = None) -> None:
    """Sends the package's log to standard error: INFO from the driver and rank 0, WARNING from other ranks.

    Calling it again replaces the earlier set-up. `rank` is None on the driver.
    """
    who = "driver" if rank is None else f"rank {rank}"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}: %(message)s", "%Y-%m-%d %H:%M:%S"))
    package = logging.getLogger("dist_resnet")
    package.handlers[:] = [handler]
    package.setLevel(logging.WARNING if rank else logging.INFO)
    package.propagate = False


def configure_unless_done() -> None:
    """As `configure` on the driver, unless the program, or the one that imports it, has set up logging itself."""
    if not logging.getLogger("dist_resnet").hasHandlers():
        configure()
