"""The Ray cluster that a job uses: the one at hand, or a Ray of its own for as long as the process lives."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import ray

from dist_resnet.launch.failures import RayFailedError
from dist_resnet.launch.ray import address, internals, surroundings
from dist_resnet.launch.ray.lifeline import Lifeline, in_a_lasting_thread, in_a_thread
from dist_resnet.launch.resources import Node, Resources, cores_here
from dist_resnet.recipe import Execution
from dist_resnet.terminal import keeping_handlers

logger = logging.getLogger(__name__)

T = TypeVar("T")

_QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "configure_logging": True}


_own = threading.Event()
_lifelines: list[Lifeline] = []


@keeping_handlers()
def connect(execution: Execution) -> None:
    """Connects to the cluster at hand, or starts a Ray here with a core for each worker, and says which.

    If that Ray ends, this process ends soon after, with a line that says so. Raises ValueError, with what to set, if
    the cluster that was named cannot be used or no Ray could work here, and RayFailedError if Ray fails all the same.
    """
    _forget_left()
    if own_cluster() and cores_here(execution) > resources().cores:
        logger.info("ending the Ray of its own, which was started for a smaller run")
        disconnect()
    if ray.is_initialized():
        return
    cluster = address.choose()
    if cluster is None:
        surroundings.check()
        _start(execution)
    else:
        _join(cluster)
    try:
        _lifelines.append(Lifeline(ray.get_runtime_context().gcs_address))
    except Exception as error:
        _fail("Ray started and then failed", error)


def resources() -> Resources:
    """What the machines of the cluster have. Raises RayFailedError if it does not say."""
    try:
        return Resources(nodes=tuple(_node(node["Resources"]) for node in ray.nodes() if node["Alive"]))
    except Exception as error:
        _fail("Ray started and then failed", error)


def _node(found: Mapping[str, float]) -> Node:
    kinds = [key.partition(":")[2] for key in found if key.startswith("accelerator_type:")]
    gpus = int(found.get("GPU", 0))
    return Node(cores=int(found.get("CPU", 0)), gpus=gpus, gpu_kind=kinds[0] if gpus and kinds else None)


def _fail(what: str, error: Exception) -> NoReturn:
    logs = f"{internals.temporary_folder()}/session_latest/logs"
    raise RayFailedError(
        f"{what} ({first_line(error)}); {logs} may say why, and the same command tries again"
    ) from error


def disconnect() -> None:
    """Leaves the cluster, or ends the Ray of our own; what this process has running there ends."""
    _close()
    ray.shutdown()


def _forget_left() -> None:
    """Forgets a Ray that was left by somebody else's `ray.shutdown()`, as in a notebook."""
    left = [line for line in _lifelines if not _is_connected_to(line.head)]
    if left:
        _close()


def _is_connected_to(head: str) -> bool:
    return ray.is_initialized() and ray.get_runtime_context().gcs_address == head


def _close() -> None:
    _own.clear()
    while _lifelines:
        _lifelines.pop().close()


def hold(call: Callable[[], T]) -> T:
    """What `call` returns, called in a thread while this one hears signals. Raises SystemExit if Ray ends before."""
    return _lifelines[-1].hold(call) if _lifelines else in_a_thread(call).result()


def _join(address: str) -> None:
    try:
        ray.init(address=address, **_QUIET)
    except Exception as error:
        raise ValueError(
            f"the Ray cluster at {address} answers but cannot be used ({first_line(error)}); "
            "RAY_ADDRESS=local runs Ray in this process"
        ) from error
    logger.info("using the Ray cluster at %s", address)


def _start(execution: Execution) -> None:
    cores = cores_here(execution)
    internals.set_up_own_ray(execution.most_workers)
    folder = internals.temporary_folder()
    logger.info("starting a Ray of its own with %d CPU cores, in %s", cores, folder)
    try:
        # No dashboard: its processes would take a share of the cores that train, and its metrics nobody asked for.
        with internals.free_ports():
            in_a_lasting_thread(lambda: ray.init(address="local", num_cpus=cores, include_dashboard=False, **_QUIET))
    except Exception as error:
        _fail("Ray does not start here", error)
    _own.set()


def own_cluster() -> bool:
    """Whether `connect` started the Ray that is used."""
    return _own.is_set()


def first_line(error: BaseException) -> str:
    """What an error says, without the traceback that Ray wraps it in."""
    cause = getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
