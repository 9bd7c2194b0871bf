"""All that is used of Ray and that Ray does not publish, each with what it buys.

What it buys in time stands in benchmarks/results/ray_internals_cpu2_20261126.md.
"""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import psutil
import ray
import ray.exceptions
from ray._common.utils import get_default_ray_temp_dir, get_ray_address_file
from ray._private import parameter, services, worker
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader
from ray.core.generated.common_pb2 import PYTHON
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest, GetAllNodeInfoRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer  # a second more

logger = logging.getLogger(__name__)

CHECKED_WITH = "2.60."
"""What the versions of Ray begin with that everything here was checked with."""

# Ray starts these on fixed ports whoever starts it, and reads the variables in the processes themselves.
_METRIC_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
_HEAD_PORT = "RAY_GCS_SERVER_PORT"
# Ray Train's name for the actor that shares a cluster out among runs with MIN:MAX workers.
_COORDINATOR = "AutoscalingCoordinator"
_SECONDS_TO_ASK = 10.0
_SECONDS_SPARES_LAST = 30 * 24 * 3600
_FIRST_WORD = re.compile(r'"([^"]*)"|(\S*)')


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the head of a cluster says of it."""

    ray_version: str
    node_ids: frozenset[str]
    """Of the nodes that are alive, in hexadecimal."""


def temporary_folder() -> str:
    """Where a Ray that starts here keeps its sessions: of RAY_TMPDIR, TMPDIR and /tmp the first that is set, and `ray`.

    Buys the folder that `ray start` in the same environment uses, whatever rule Ray has for it.
    """
    return get_default_ray_temp_dir()


def record_of_started_cluster() -> Path:
    """The file in which `ray start` leaves its cluster's address. Buys where Ray itself looks for it."""
    return Path(get_ray_address_file(None))


def with_machine_address(address: str) -> str:
    """HOST:PORT with this machine's own IP in place of localhost. Buys what a head by `ray start` listens on."""
    return services.canonicalize_bootstrap_address(address)


def ask_head(address: str, seconds: float) -> Head:
    """What answers as a cluster's head at HOST:PORT, with the token that Ray knows here.

    Buys an answer within `seconds` and the reason where there is none; `ray.init` tries for minutes and says neither.
    Raises grpc.RpcError, and ray.exceptions.AuthenticationError if a token is asked for by RAY_AUTH_MODE and not found.
    """
    alive = GetAllNodeInfoRequest(state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
    with init_grpc_channel(address) as channel:
        head = NodeInfoGcsServiceStub(channel)
        version = head.CheckAlive(CheckAliveRequest(), timeout=seconds).ray_version
        nodes = head.GetAllNodeInfo(alive, timeout=seconds).node_info_list
    return Head(ray_version=version, node_ids=frozenset(node.node_id.hex() for node in nodes))


def head_answers(address: str, seconds: float) -> bool:
    """Whether a cluster's head answers at HOST:PORT within `seconds`. Buys that it is known to be away while Ray still
    waits for it."""
    try:
        with init_grpc_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=seconds)
    except grpc.RpcError:
        return False
    return True


def nodes_here() -> dict[str, str]:
    """The ids of all nodes of any Ray on this machine, each with the Python that it starts workers with.

    Buys whether a cluster has a node here that can work: `ray.init` waits for a minute for one, workers for ever.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command and Path(command[0]).name == "raylet":
                options = {key: value for key, _, value in (argument.partition("=") for argument in command)}
                (quoted, plain), *_ = _FIRST_WORD.findall(options.get("--python_worker_command", ""))
                found[options.get("--node_id", "")] = quoted or plain
    return found


def has_token() -> bool:
    """Whether Ray finds a token. Buys Ray's own order of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token.

    Raises ray.exceptions.AuthenticationError if RAY_AUTH_TOKEN_PATH names no readable file.
    """
    return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def sends_token() -> bool:
    """Whether this process identifies itself by a token. Buys the advice that fits a refusal."""
    return is_token_auth_enabled()


def send_known_token() -> bool:
    """Has this process send the token that Ray finds, if RAY_AUTH_MODE does not say otherwise; returns whether it does.

    Buys for every address what Ray does for a cluster that it has found by itself.
    """
    return maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextlib.contextmanager
def free_ports() -> Iterator[None]:
    """Within the block `ray.init(address="local")` starts a Ray that takes free ports only.

    Buys that it leaves those of `ray start` and of other runs alone: `ray.init` has no argument for the dashboard
    agent's, 52365, and whichever Ray comes second has no agent, and takes no jobs.
    """
    fixed, earlier = parameter.RayParams, {name: os.environ.pop(name, None) for name in (*_METRIC_PORTS, _HEAD_PORT)}
    parameter.RayParams = functools.partial(fixed, dashboard_agent_listen_port=0)
    os.environ.update(dict.fromkeys(_METRIC_PORTS, "0"))
    try:
        yield
    finally:
        parameter.RayParams = fixed
        for name, value in earlier.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def set_up_own_ray(workers: int) -> None:
    """Sets what a Ray that is started next reads in the environment, and leaves alone what is set.

    Buys seconds of a recovery, and processes that a Ray of one machine and one run does not need.
    """
    for variable, value in {
        # It is this one machine: nobody drains it, so nobody need watch for that.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # After a failure all workers start at once, and an actor that synchronizes them.
        "RAY_worker_maximum_startup_concurrency": str(workers + 2),
        # Ray Train's processes have an environment of their own and would leave those that Ray starts in advance idle.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_preload_python_modules": "dist_resnet.launch.ray.preload",
    }.items():
        os.environ.setdefault(variable, value)


def prestart(count: int) -> None:
    """Has this machine's Ray start processes in the environment of this one; they are there somewhat later.

    Buys the greater part of a recovery: the next workers find Python started and torch imported.
    """
    context = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    request = PrestartWorkersRequest(
        language=PYTHON,
        job_id=bytes.fromhex(context.get_job_id()),
        num_workers=count,
        keep_alive_duration_secs=_SECONDS_SPARES_LAST,
    )
    request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_SECONDS_TO_ASK)


def leave_out_helpers(trainer: "TorchTrainer", *, own_cluster: bool) -> None:
    """Has a trainer not start the actor for Ray Data, which is not used here; nor, on a Ray of our own, which is ended
    whole, the one that frees a dead controller's resources and asks Ray's dashboard, which is not there, every second.

    Buys a start of Python at the beginning and after each failure, and then a twentieth of a core and 117 MB.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    unused = (DatasetsCallback, PlacementGroupCleanerCallback) if own_cluster else (DatasetsCallback,)
    create = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [one for one in create() if not isinstance(one, unused)]


def run_id(trainer: "TorchTrainer") -> str:
    """Ray Train's own id of what `fit` will run. Buys that `release` can name it."""
    return trainer.train_run_context.run_id


def release(run_id: str) -> None:
    """Gives back what a run of Ray Train that is gone has reserved, by its id.

    Buys three minutes, for which its reservation would last and a run with MIN:MAX workers find no room.
    """
    try:
        coordinator = ray.get_actor(_COORDINATOR, namespace=_COORDINATOR)
        ray.get(coordinator.cancel_request.remote(f"train-{run_id}"), timeout=_SECONDS_TO_ASK)
    except ValueError:
        return  # no run has reserved anything yet
    except ray.exceptions.RayError as error:
        logger.warning(
            "what an earlier start of the run has reserved cannot be given back (%s); it runs out within three minutes",
            type(error).__name__,
        )


def essential_processes() -> list[psutil.Process]:
    """This machine's processes whose end is that of the Ray to which this process is connected: the node's raylet, and
    the head's server where that is here and has no store of its own to come back from.

    Buys that their end is noticed at once; Ray notices it after up to a minute, and then ends this process in silence.
    """
    # By its id: nodes in containers that share processes but not folders have sockets of the same name.
    raylet = f"--node_id={ray.get_runtime_context().get_node_id()}"
    head = f"--session-name={worker._global_node.session_name}"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if raylet in command or (head in command and _is_final(process, command)):
                found.append(process)
    return found


def sockets_folder() -> str | None:
    """Where this node's processes find each other; None while this process is connected to no Ray.

    Buys a word when a cleaner of temporary files takes it away: what starts from then on waits for ever.
    """
    node = worker._global_node
    return None if node is None else node.get_sockets_dir_path()


def _is_final(process: psutil.Process, command: Sequence[str]) -> bool:
    """Whether a process is a head's server that keeps all it knows in its memory."""
    if Path(command[0]).name != "gcs_server":
        return False
    kept = any(argument.startswith("--redis_address=") for argument in command)
    return not kept and process.environ().get("RAY_gcs_storage", "memory") == "memory"
