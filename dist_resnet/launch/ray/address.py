"""Which Ray a job uses: the cluster that RAY_ADDRESS names, else the one that was started here, else its own Ray."""

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import ray
from ray.exceptions import AuthenticationError

from dist_resnet.launch.ray import internals
from dist_resnet.launch.ray.surroundings import check_executable

logger = logging.getLogger(__name__)

_VARIABLE = "RAY_ADDRESS"
_SECONDS_BETWEEN_CALLS = 0.5
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_EXAMPLE = "such as 127.0.0.1:6379"
_SUBMIT = "ray job submit --working-dir . -- python jobs/..."
_ALONE = "unset it to run Ray in this process"


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds to wait for a cluster's head."""

    start: float = 4.0
    """For a head that is about to start or to restart."""
    answer: float = 8.0
    """For a head that accepts the call and stays silent."""


TIMEOUTS = Timeouts()


@dataclass(frozen=True, kw_only=True)
class _NoClusterError(Exception):
    """No cluster at an address can be joined by this process."""

    reason: str


def choose(timeouts: Timeouts = TIMEOUTS) -> str | None:
    """The HOST:PORT of the cluster to use, or None for this process's own Ray.

    If only Ray's record of a cluster remains, logs a warning. Raises ValueError, with what to set, if RAY_ADDRESS names
    no cluster that this process can use, or if a cluster refuses it.
    """
    named = os.environ.get(_VARIABLE, "").strip()
    if named == "local":
        return None
    record = internals.record_of_started_cluster()
    if named not in ("", "auto"):
        return _required(check_address(named), f"{_VARIABLE} {named}", timeouts)
    address = _recorded(record)
    if named == "auto":
        if not address:
            raise ValueError(
                f"{_VARIABLE} is auto and {record} names no cluster; start one with `ray start --head`, or {_ALONE}"
            )
        return _required(check_address(address), f"{address}, as {record} says", timeouts)
    return _if_alive(address, record, timeouts) if address else None


def check_head_of_job_server(timeouts: Timeouts = TIMEOUTS) -> None:
    """Raises ValueError within seconds if the head that knows the job server's address does not answer, or refuses.

    RAY_API_SERVER_ADDRESS, or a RAY_ADDRESS such as http://HOST:8265, names the job server itself.
    """
    named, record = os.environ.get(_VARIABLE, "").strip(), internals.record_of_started_cluster()
    if os.environ.get("RAY_API_SERVER_ADDRESS") or "://" in named:
        return
    recorded = "" if named not in ("", "auto") else _recorded(record)
    if recorded or named not in ("", "auto"):
        try:
            _ask_with_token(internals.with_machine_address(check_address(recorded or named)), timeouts)
        except _NoClusterError as error:
            source = f"{recorded}, as {record} says" if recorded else f"{_VARIABLE} {named}"
            raise ValueError(f"no Ray cluster answers at {source}: {error.reason}") from error


def check_address(named: str) -> str:
    """The address, unchanged. Raises ValueError if it is not HOST:PORT, with what it seems to be."""
    scheme, separator, rest = named.partition("://")
    host = (re.match(r"[^\s:/@]+", rest) or ["HOST"])[0]
    if separator and scheme == "ray":
        raise ValueError(
            f"{_VARIABLE} {named} is for Ray Client, through which no job can train; submit the job: "
            f"`{_VARIABLE}= RAY_API_SERVER_ADDRESS=http://{host}:8265 {_SUBMIT}`, or start it on a node of the cluster "
            f"with {_VARIABLE} as HOST:PORT, {_EXAMPLE}"
        )
    if separator and scheme in ("http", "https"):
        raise ValueError(
            f"{_VARIABLE} {named} is the address of a job server; submit the job there: "
            f"`{_VARIABLE}= RAY_API_SERVER_ADDRESS={named} {_SUBMIT}`, or start it on a node of the cluster with "
            f"{_VARIABLE} as HOST:PORT, {_EXAMPLE}"
        )
    parts = _ADDRESS.fullmatch(named)
    if parts is None:
        raise ValueError(f"{_VARIABLE} must be HOST:PORT, {_EXAMPLE}, got {named!r}; correct it, or {_ALONE}")
    if not 1024 <= int(parts[2]) <= 65535:
        raise ValueError(
            f"the port of {_VARIABLE} {named} is not in 1024 to 65535; give the head's port, by default 6379, or "
            f"{_ALONE}"
        )
    return named


def _recorded(record: Path) -> str:
    """The address that `ray start` recorded, or an empty string."""
    try:
        return record.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("cannot read %s, where `ray start` records its address (%s)", record, error)
        return ""


def _required(address: str, source: str, timeouts: Timeouts) -> str:
    """The address of a cluster that must be usable; `source` says who named it."""
    try:
        return _reach(address, timeouts)
    except _NoClusterError as error:
        raise ValueError(
            f"no usable Ray cluster at {source}: {error.reason}; start one with `ray start --head`, or {_ALONE}"
        ) from error


def _if_alive(address: str, record: Path, timeouts: Timeouts) -> str | None:
    """The address of a recorded cluster, or None if it is gone."""
    try:
        if _ADDRESS.fullmatch(address) is None:
            raise _NoClusterError(reason=f"it is not HOST:PORT, {_EXAMPLE}")
        return _reach(address, timeouts)
    except _NoClusterError as error:
        logger.warning(
            "%s names a Ray cluster at %r that is not usable (%s); `ray stop` or a new `ray start` renews that file",
            *(record, address[:100], error.reason),
        )
        return None


def _reach(address: str, timeouts: Timeouts) -> str:
    """The address, in Ray's form, of a cluster that accepts this process and has a living node on this machine.

    Raises ValueError if it refuses, has another version of Ray or a Python that does not start; _NoClusterError if it
    does not answer or has no node here.
    """
    address = internals.with_machine_address(address)
    head = _ask_with_token(address, timeouts)
    if head.ray_version != ray.__version__:
        raise ValueError(
            f"the Ray cluster at {address} runs Ray {head.ray_version} and this process Ray {ray.__version__}; use the "
            f"same version, or {_VARIABLE}=local to run Ray in this process"
        )
    pythons = [python for node, python in internals.nodes_here().items() if node in head.node_ids]
    for python in pythons:
        check_executable(python)
    if not pythons:
        raise _NoClusterError(
            reason=f"its head answers, but this machine is not one of its {len(head.node_ids)} living nodes; use "
            f"`ray job submit`, or join with `ray start --address={address}`"
        )
    return address


def _ask_with_token(address: str, timeouts: Timeouts) -> internals.Head:
    """The head's answer, with a token only if it asks for one. Raises ValueError if it refuses the token, too."""
    try:
        return _ask(address, timeouts)
    except PermissionError:
        pass
    try:
        if not internals.sends_token() and internals.send_known_token():
            return _ask(address, timeouts)
    except (PermissionError, AuthenticationError):
        pass
    fault = "this process's token is not the cluster's" if internals.sends_token() else "it asks for a token"
    raise ValueError(
        f"the Ray cluster at {address} refuses this process: {fault}; set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head (or write that to ~/.ray/auth_token), or "
        f"{_VARIABLE}=local to run Ray in this process"
    )


def _ask(address: str, timeouts: Timeouts) -> internals.Head:
    """The head's answer. Raises PermissionError if it refuses, _NoClusterError if nothing answers in time."""
    deadline = time.monotonic() + timeouts.start
    while True:
        try:
            return internals.ask_head(address, timeouts.answer)
        except AuthenticationError as error:
            raise ValueError(
                f"RAY_AUTH_MODE is token, but no token is set ({' '.join(str(error).split('.')[0].split())}); set "
                "RAY_AUTH_TOKEN to the cluster's, or RAY_AUTH_MODE=disabled for a cluster without a token"
            ) from error
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise PermissionError from error
            reason, may_start = _explain(error, address, timeouts)
        if not may_start or time.monotonic() > deadline:
            raise _NoClusterError(reason=reason)
        time.sleep(_SECONDS_BETWEEN_CALLS)


def _explain(error: grpc.RpcError, address: str, timeouts: Timeouts) -> tuple[str, bool]:
    """Why a call failed, in a few words, and whether a call soon after may succeed."""
    details = error.details() or ""
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {timeouts.answer:.0f} s", False
    if error.code() == grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        return "what answers there is not a Ray head; a head's port is 6379 by default", False
    if "resolving" in details or "resolution" in details:
        return f"the host {address.rpartition(':')[0]} was not found", False
    for known in ("Connection refused", "Network is unreachable", "No route to host"):
        if known in details:
            return known, True
    return " ".join(details.split())[-200:] or error.code().name, True
