"""The Ray cluster that a job uses: one that runs already, or the job's own Ray, which ends with the process."""

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
    """Connects to the cluster that `address.choose` finds, or starts a Ray here with a core per worker, and logs which.

    If that Ray ends, this process logs one line and ends soon after. Raises ValueError, with what to set, if the named
    cluster cannot be used or Ray could not work here, and RayFailedError if Ray fails for another reason.
    """
    _forget_left()
    if own_cluster() and cores_here(execution) > resources().cores:
        logger.info("stopping its own Ray, which was started for a smaller run")
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
    """The cores and GPUs of the cluster's machines. Raises RayFailedError if Ray does not answer."""
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
    raise RayFailedError(f"{what} ({first_line(error)}); {logs} may say why; give the same command again") from error


def disconnect() -> None:
    """Leaves the cluster, or ends the process's own Ray; what this process runs there ends."""
    _close()
    ray.shutdown()


def _forget_left() -> None:
    """Forgets a Ray that other code has left by `ray.shutdown()`, as in a notebook."""
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
    """What `call` returns, run in a thread while this one handles signals. Raises SystemExit if Ray ends before."""
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
    logger.info("starting its own Ray with %d CPU cores, in %s", cores, folder)
    try:
        # No dashboard: its processes would use cores that train.
        with internals.free_ports():
            in_a_lasting_thread(lambda: ray.init(address="local", num_cpus=cores, include_dashboard=False, **_QUIET))
    except Exception as error:
        _fail("Ray cannot start here", error)
    _own.set()


def own_cluster() -> bool:
    """Whether `connect` started the Ray in use."""
    return _own.is_set()


def first_line(error: BaseException) -> str:
    """An error's message, without the traceback that Ray wraps it in."""
    cause = getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
