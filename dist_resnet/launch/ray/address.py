"""Which Ray a job uses: the cluster that RAY_ADDRESS names, else the one that was started here, else one of its own."""

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
# One that is about to start, or to come back, is waited for; one that takes the call and is silent has longer.
_SECONDS_TO_COME, _SECONDS_TO_ANSWER = 4.0, 8.0
_SECONDS_BETWEEN_CALLS = 0.5
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_EXAMPLE = "such as 127.0.0.1:6379"
_SUBMIT = "ray job submit --working-dir . -- python jobs/..."
_ALONE = "unset it to run Ray in this process"


@dataclass(frozen=True, kw_only=True)
class _NoClusterError(Exception):
    """There is no cluster at an address that this process could be part of."""

    reason: str


def choose() -> str | None:
    """The HOST:PORT of the cluster to use, or None for a Ray of this process's own.

    A cluster of which only Ray's record is left costs a warning. Raises ValueError, with what to set, if RAY_ADDRESS
    names no cluster that this process can use, or a cluster refuses it.
    """
    named = os.environ.get(_VARIABLE, "").strip()
    if named == "local":
        return None
    record = internals.record_of_started_cluster()
    if named not in ("", "auto"):
        return _insisted_on(check_address(named), f"{_VARIABLE} {named}")
    address = _recorded(record)
    if named == "auto":
        if not address:
            raise ValueError(
                f"{_VARIABLE} is auto and {record} names no cluster; start one with `ray start --head`, or {_ALONE}"
            )
        return _insisted_on(check_address(address), f"{address}, as {record} says")
    return _if_alive(address, record) if address else None


def check_head_of_job_server() -> None:
    """Raises ValueError within seconds if the head at which Ray would ask for its job server is not there, or refuses.

    RAY_API_SERVER_ADDRESS, or a RAY_ADDRESS such as http://HOST:8265, names the job server itself.
    """
    named, record = os.environ.get(_VARIABLE, "").strip(), internals.record_of_started_cluster()
    if os.environ.get("RAY_API_SERVER_ADDRESS") or "://" in named:
        return
    recorded = "" if named not in ("", "auto") else _recorded(record)
    if recorded or named not in ("", "auto"):
        try:
            _ask_with_token(internals.with_machine_address(check_address(recorded or named)))
        except _NoClusterError as error:
            shown = f"{recorded}, as {record} says" if recorded else f"{_VARIABLE} {named}"
            raise ValueError(f"no Ray cluster answers at {shown}: {error.reason}") from error


def check_address(named: str) -> str:
    """An address of RAY_ADDRESS. Raises ValueError if it is no HOST:PORT, with what it is taken for."""
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
        raise ValueError(f"{_VARIABLE} is HOST:PORT, {_EXAMPLE}, got {named!r}; correct it, or {_ALONE}")
    if not 1024 <= int(parts[2]) <= 65535:
        raise ValueError(
            f"the port of {_VARIABLE} {named} is none of 1024 to 65535; give that of the head, 6379 if it was given no "
            f"other, or {_ALONE}"
        )
    return named


def _recorded(record: Path) -> str:
    """The address that `ray start` left, or nothing."""
    try:
        return record.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s, where `ray start` leaves its address, cannot be read (%s)", record, error)
        return ""


def _insisted_on(address: str, shown: str) -> str:
    """The address of a cluster that has to be there."""
    try:
        return _reach(address)
    except _NoClusterError as error:
        raise ValueError(
            f"no Ray cluster can be used at {shown}: {error.reason}; start one with `ray start --head`, or {_ALONE}"
        ) from error


def _if_alive(address: str, record: Path) -> str | None:
    """The address of a cluster that was here once, or None if it is gone."""
    try:
        if _ADDRESS.fullmatch(address) is None:
            raise _NoClusterError(reason=f"it is no HOST:PORT, {_EXAMPLE}")
        return _reach(address)
    except _NoClusterError as error:
        logger.warning(
            "%s names a Ray cluster at %r that is not there (%s); `ray stop` or a new `ray start` clears that up",
            *(record, address[:100], error.reason),
        )
        return None


def _reach(address: str) -> str:
    """The address as Ray wants it, of a cluster with a living node on this machine that takes this process in.

    Raises ValueError if it refuses, is of another version or has no Python that starts; _NoClusterError if it is not
    there.
    """
    address = internals.with_machine_address(address)
    head = _ask_with_token(address)
    if head.ray_version != ray.__version__:
        raise ValueError(
            f"the Ray cluster at {address} runs Ray {head.ray_version} and this is {ray.__version__}; use the same "
            f"version, or {_VARIABLE}=local to run Ray in this process"
        )
    pythons = [python for node, python in internals.nodes_here().items() if node in head.node_ids]
    for python in pythons:
        check_executable(python)
    if not pythons:
        raise _NoClusterError(
            reason=f"its head answers, but this machine is none of its {len(head.node_ids)} living nodes; use "
            f"`ray job submit`, or join here by `ray start --address={address}`"
        )
    return address


def _ask_with_token(address: str) -> internals.Head:
    """What the head says, with a token only if it asks for one. Raises ValueError if it refuses the token, too."""
    try:
        return _ask(address)
    except PermissionError:
        pass
    try:
        if not internals.sends_token() and internals.send_known_token():
            return _ask(address)
    except (PermissionError, AuthenticationError):
        pass
    fault = "the token that this process has is not the cluster's" if internals.sends_token() else "it wants a token"
    raise ValueError(
        f"the Ray cluster at {address} refuses this process: {fault}; set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head (or keep that in ~/.ray/auth_token), or "
        f"{_VARIABLE}=local to run Ray in this process"
    )


def _ask(address: str) -> internals.Head:
    """What the head says. Raises PermissionError if it refuses, _NoClusterError if nothing answers for some seconds."""
    deadline = time.monotonic() + _SECONDS_TO_COME
    while True:
        try:
            return internals.ask_head(address, _SECONDS_TO_ANSWER)
        except AuthenticationError as error:
            raise ValueError(
                f"RAY_AUTH_MODE is token and there is none ({' '.join(str(error).split('.')[0].split())}); set "
                "RAY_AUTH_TOKEN to the cluster's, or RAY_AUTH_MODE=disabled for a cluster without"
            ) from error
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise PermissionError from error
            reason, may_come = _read(error, address)
        if not may_come or time.monotonic() > deadline:
            raise _NoClusterError(reason=reason)
        time.sleep(_SECONDS_BETWEEN_CALLS)


def _read(error: grpc.RpcError, address: str) -> tuple[str, bool]:
    """Why a call failed, in a few words, and whether another soon after may not."""
    details = error.details() or ""
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {_SECONDS_TO_ANSWER:.0f} s", False
    if error.code() == grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        return "what answers there is no Ray head, whose port is 6379 if it was given no other", False
    if "resolving" in details or "resolution" in details:
        return f"the host {address.rpartition(':')[0]} is not found", False
    for known in ("Connection refused", "Network is unreachable", "No route to host"):
        if known in details:
            return known, True
    return " ".join(details.split())[-200:] or error.code().name, True
