"""Every use of Ray's private interface, each with its reason; benchmarks/results/ray_internals_cpu2_20261126.md has the
time that each saves."""

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
"""Prefix of the versions of Ray with which everything here was checked."""

# Every Ray uses fixed ports for these unless the variables are set; Ray's own processes read them.
_METRIC_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
_HEAD_PORT = "RAY_GCS_SERVER_PORT"
# Ray Train's name for the actor that divides a cluster among runs with MIN:MAX workers.
_COORDINATOR = "AutoscalingCoordinator"
_SECONDS_TO_ASK = 10.0
_SECONDS_SPARES_LAST = 30 * 24 * 3600
_FIRST_WORD = re.compile(r'"([^"]*)"|(\S*)')


@dataclass(frozen=True, kw_only=True)
class Head:
    """A cluster, as its head describes it."""

    ray_version: str
    node_ids: frozenset[str]
    """Of the nodes that are alive, in hexadecimal."""


def temporary_folder() -> str:
    """The folder for sessions of a Ray that starts here: `ray` in RAY_TMPDIR, TMPDIR or /tmp, the first that is set.

    By Ray's own rule, so that it is the folder that `ray start` uses in the same environment.
    """
    return get_default_ray_temp_dir()


def record_of_started_cluster() -> Path:
    """The file in which `ray start` records its cluster's address, where Ray itself looks for it."""
    return Path(get_ray_address_file(None))


def with_machine_address(address: str) -> str:
    """HOST:PORT with this machine's own IP in place of localhost, on which a head by `ray start` listens."""
    return services.canonicalize_bootstrap_address(address)


def ask_head(address: str, seconds: float) -> Head:
    """The answer of a cluster's head at HOST:PORT, asked with the token that Ray finds here.

    Answers or gives the reason within `seconds`; `ray.init` tries for minutes and gives none. Raises grpc.RpcError, and
    ray.exceptions.AuthenticationError if RAY_AUTH_MODE requires a token and none is found.
    """
    alive = GetAllNodeInfoRequest(state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
    with init_grpc_channel(address) as channel:
        head = NodeInfoGcsServiceStub(channel)
        version = head.CheckAlive(CheckAliveRequest(), timeout=seconds).ray_version
        nodes = head.GetAllNodeInfo(alive, timeout=seconds).node_info_list
    return Head(ray_version=version, node_ids=frozenset(node.node_id.hex() for node in nodes))


def head_answers(address: str, seconds: float) -> bool:
    """Whether a cluster's head answers at HOST:PORT within `seconds`: it may be down while Ray still waits for it."""
    try:
        with init_grpc_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=seconds)
    except grpc.RpcError:
        return False
    return True


def nodes_here() -> dict[str, str]:
    """The ids of all nodes of any Ray on this machine, each with the Python with which it starts workers.

    Shows at once whether a cluster has a working node here: `ray.init` waits a minute for one, workers wait forever.
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
    """Whether Ray finds a token, in its own order of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token.

    Raises ray.exceptions.AuthenticationError if RAY_AUTH_TOKEN_PATH names no readable file.
    """
    return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def sends_token() -> bool:
    """Whether this process sends a token, on which the advice after a refusal depends."""
    return is_token_auth_enabled()


def send_known_token() -> bool:
    """Makes this process send the token that Ray finds, unless RAY_AUTH_MODE forbids it; returns whether it does.

    Ray itself does so only for a cluster that it has found by itself.
    """
    return maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextlib.contextmanager
def free_ports() -> Iterator[None]:
    """Within the block `ray.init(address="local")` starts a Ray that takes free ports only.

    So it does not take those of `ray start` and of other runs: `ray.init` has no argument for the dashboard agent's
    port, 52365, and the second Ray on a machine would have no agent and accept no jobs.
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
    """Sets the environment variables that a Ray started next reads, unless they are set.

    Saves seconds of each recovery, and processes that a Ray of one machine and one run does not need.
    """
    for variable, value in {
        # Nobody drains this one machine.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # After a failure all workers start at once, with an actor that synchronizes them.
        "RAY_worker_maximum_startup_concurrency": str(workers + 2),
        # Ray Train's processes have their own environment and could not use those that Ray starts in advance.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_preload_python_modules": "dist_resnet.launch.ray.preload",
    }.items():
        os.environ.setdefault(variable, value)


def prestart(count: int) -> None:
    """Makes this machine's Ray start `count` idle processes in this process's environment; returns before they run.

    Saves most of a recovery's time: the next workers find Python started and torch imported.
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
    """Stops a trainer from starting the actor for Ray Data, which is not used here, and on the job's own Ray the one
    that frees a dead controller's resources: that Ray ends as a whole, and has no dashboard, which the actor polls.

    Saves a start of Python at the beginning and after each failure, and a twentieth of a core and 117 MB.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    unused = (DatasetsCallback, PlacementGroupCleanerCallback) if own_cluster else (DatasetsCallback,)
    create = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [one for one in create() if not isinstance(one, unused)]


def run_id(trainer: "TorchTrainer") -> str:
    """Ray Train's id of the run that `fit` will start, for `release`."""
    return trainer.train_run_context.run_id


def release(run_id: str) -> None:
    """Frees the resources that a dead run of Ray Train has reserved, by its id.

    Otherwise the reservation lasts three minutes, in which a run with MIN:MAX workers finds no room.
    """
    try:
        coordinator = ray.get_actor(_COORDINATOR, namespace=_COORDINATOR)
        ray.get(coordinator.cancel_request.remote(f"train-{run_id}"), timeout=_SECONDS_TO_ASK)
    except ValueError:
        return  # no run has reserved anything yet
    except ray.exceptions.RayError as error:
        logger.warning(
            "cannot free the resources that an earlier start of the run has reserved (%s); they are freed within three "
            "minutes",
            type(error).__name__,
        )


def essential_processes() -> list[psutil.Process]:
    """The processes here without which this process's Ray ends: the node's raylet, and the head's server if it runs
    here and has no store to restart from.

    Their end is then noticed at once; Ray notices it after up to a minute, and then ends this process silently.
    """
    # By the node's id: nodes in containers that share processes but not folders have sockets of the same name.
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
    """The folder of this node's sockets; None while this process is not connected to Ray.

    If a cleaner of temporary files deletes it, workers that start afterwards hang.
    """
    node = worker._global_node
    return None if node is None else node.get_sockets_dir_path()


def _is_final(process: psutil.Process, command: Sequence[str]) -> bool:
    """Whether a process is a head's server that keeps its state in memory only."""
    if Path(command[0]).name != "gcs_server":
        return False
    kept = any(argument.startswith("--redis_address=") for argument in command)
    return not kept and process.environ().get("RAY_gcs_storage", "memory") == "memory"
