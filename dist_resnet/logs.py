"""Logging of a process: time, level and rank in every line."""

import logging


def configure(rank: int | None = None) -> None:
    """Sends the package's log to standard error: INFO from the driver and rank 0, WARNING from other ranks.

    `rank` is None on the driver. Another call replaces the earlier configuration.
    """
    who = "driver" if rank is None else f"rank {rank}"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}: %(message)s", "%Y-%m-%d %H:%M:%S"))
    package = logging.getLogger("dist_resnet")
    package.handlers[:] = [handler]
    package.setLevel(logging.WARNING if rank else logging.INFO)
    package.propagate = False


def configure_unless_done() -> None:
    """As `configure` on the driver, unless the program that runs has configured logging itself."""
    if not logging.getLogger("dist_resnet").hasHandlers():
        configure()
