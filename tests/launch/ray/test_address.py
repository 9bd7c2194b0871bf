"""Which Ray is used. Oracle: Ray's documentation of RAY_ADDRESS, RAY_TMPDIR, TMPDIR and `ray_current_cluster`; sockets
of this machine that are closed, silent, speak HTTP, or answer as a head does."""

import contextlib
import http.server
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import ray
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.core.generated.gcs_service_pb2 import CheckAliveReply, GetAllNodeInfoReply
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceServicer, add_NodeInfoGcsServiceServicer_to_server

from dist_resnet.launch.ray import address, internals
from dist_resnet.launch.ray.address import Timeouts
from dist_resnet.launch.ray.jobs import JobServer

_SHORT = Timeouts(start=0.2, answer=1.0)


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def _record(folder: Path, content: bytes) -> None:
    (folder / "ray").mkdir(exist_ok=True)
    (folder / "ray" / "ray_current_cluster").write_bytes(content)


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a network: unlike those of `ray start`, the heads here listen on the loopback address."""
    monkeypatch.setattr(internals, "with_machine_address", lambda address: address)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def _silent() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def _http() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class _Head(NodeInfoGcsServiceServicer):
    """Answers as a head of a version with one node on another machine, or refuses everyone."""

    def __init__(self, version: str, *, refuses: bool = False) -> None:
        self._version, self._refuses = version, refuses

    def CheckAlive(self, request, context) -> CheckAliveReply:  # noqa: N802
        if self._refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: missing or incorrect")
        return CheckAliveReply(ray_version=self._version)

    def GetAllNodeInfo(self, request, context) -> GetAllNodeInfoReply:  # noqa: N802
        return GetAllNodeInfoReply(node_info_list=[GcsNodeInfo(node_id=b"\x01" * 28)])


@contextlib.contextmanager
def _head(version: str = ray.__version__, *, refuses: bool = False, services: bool = True) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    if services:
        add_NodeInfoGcsServiceServicer_to_server(_Head(version, refuses=refuses), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("named", "advice"),
    [
        ("ray://head:10001", "RAY_API_SERVER_ADDRESS=http://head:8265 ray job submit"),
        ("http://head:8265", "RAY_API_SERVER_ADDRESS=http://head:8265 ray job submit"),
        ("https://rays.example.org", "RAY_API_SERVER_ADDRESS=https://rays.example.org ray job submit"),
        ("grpc://head:6379", "RAY_ADDRESS must be HOST:PORT"),
        ("127.0.0.1", "RAY_ADDRESS must be HOST:PORT"),
        ("127.0.0.1:", "RAY_ADDRESS must be HOST:PORT"),
        (":6379", "RAY_ADDRESS must be HOST:PORT"),
        ("head:port", "RAY_ADDRESS must be HOST:PORT"),
        ("::1:6379", "RAY_ADDRESS must be HOST:PORT"),
        ("a:6379,b:6379", "RAY_ADDRESS must be HOST:PORT"),
        ("head: 6379", "RAY_ADDRESS must be HOST:PORT"),
        ("head:6379/", "RAY_ADDRESS must be HOST:PORT"),
        ("head:0", "not in 1024 to 65535"),
        ("head:80", "not in 1024 to 65535"),
        ("head:65536", "not in 1024 to 65535"),
    ],
)
def test_an_address_that_is_not_a_heads_is_refused_with_matching_advice(monkeypatch, named: str, advice: str):
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ValueError, match="RAY_ADDRESS") as refusal:
        address.choose(_SHORT)
    assert advice in str(refusal.value)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The log of Ray's address, without that of other tests' threads."""
    return [record for record in caplog.records if record.name == "dist_resnet.launch.ray.address"]


@pytest.mark.parametrize("named", ["head:6379", "10.0.0.1:1024", "[fd00::1]:6379", "head.example.org:65535"])
def test_an_address_of_a_head_is_returned_unchanged(named: str):
    assert address.check_address(named) == named


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (lambda: contextlib.nullcontext(_free_port()), "Connection refused"),
        (_silent, "no answer within 1 s"),
        (_http, "not a Ray head"),
        (lambda: _head(services=False), "not a Ray head"),
        (_head, "this machine is not one of its 1 living nodes"),
    ],
)
def test_a_named_cluster_that_cannot_be_used_is_refused_and_a_recorded_one_logs_a_warning(
    monkeypatch, tmp_path: Path, caplog, server, reason: str
):
    with server() as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(
            ValueError, match=f"no usable Ray cluster at RAY_ADDRESS 127.0.0.1:{port}: .*{reason}.*unset it"
        ):
            address.choose(_SHORT)
        monkeypatch.delenv("RAY_ADDRESS")
        _record(tmp_path, f"127.0.0.1:{port}".encode())
        assert address.choose(_SHORT) is None
    (warning,) = _logged(caplog)
    assert warning.levelno == logging.WARNING
    assert reason in warning.getMessage()
    assert f"127.0.0.1:{port}" in warning.getMessage()


def test_an_unknown_host_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with pytest.raises(ValueError, match="the host no-such-host.invalid was not found"):
        address.choose(_SHORT)


def test_a_head_that_is_about_to_start_is_waited_for(monkeypatch):
    port = _free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_NodeInfoGcsServiceServicer_to_server(_Head(ray.__version__), server)

    def start() -> None:
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()

    timer = threading.Timer(1.0, start)
    timer.start()
    with pytest.raises(ValueError, match="its head answers"):
        address.choose(Timeouts(start=10.0))
    timer.join()
    server.stop(0).wait()


@pytest.mark.parametrize("named", [True, False])
def test_a_cluster_that_refuses_is_refused_with_what_to_set(monkeypatch, tmp_path: Path, named: bool):
    with _head(refuses=True) as port:
        if named:
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        else:
            _record(tmp_path, f"127.0.0.1:{port}".encode())
        with pytest.raises(ValueError, match="refuses this process: .*RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"):
            address.choose(_SHORT)


def test_a_cluster_of_another_version_is_refused(monkeypatch):
    with _head("2.9.3") as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(ValueError, match=rf"runs Ray 2\.9\.3 and this process Ray {ray.__version__}"):
            address.choose(_SHORT)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00broken", b"127.0.0.1", b"http://127.0.0.1:8265", b"\x00" * 50])
def test_a_broken_record_logs_one_line(tmp_path: Path, caplog, content: bytes):
    _record(tmp_path, content)
    assert address.choose(_SHORT) is None
    assert len(caplog.records) == 1
    assert str(tmp_path / "ray" / "ray_current_cluster") in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"\n"])
def test_without_a_record_nothing_is_logged(tmp_path: Path, caplog, content: bytes | None):
    if content is not None:
        _record(tmp_path, content)
    assert address.choose(_SHORT) is None
    assert not _logged(caplog)


def test_local_starts_its_own_ray_even_if_a_cluster_is_recorded(monkeypatch, tmp_path: Path, caplog):
    _record(tmp_path, b"127.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert address.choose(_SHORT) is None
    assert not _logged(caplog)


def test_auto_needs_a_running_cluster(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ValueError, match="RAY_ADDRESS is auto and .*ray_current_cluster names no cluster"):
        address.choose(_SHORT)
    _record(tmp_path, f"127.0.0.1:{_free_port()}".encode())
    with pytest.raises(ValueError, match="no usable Ray cluster at .* as .*ray_current_cluster says"):
        address.choose(_SHORT)


@pytest.mark.parametrize(("variables", "used"), [(("TMPDIR",), "TMPDIR"), (("TMPDIR", "RAY_TMPDIR"), "RAY_TMPDIR")])
def test_the_record_is_read_from_where_ray_start_writes_it(monkeypatch, tmp_path: Path, caplog, variables, used: str):
    monkeypatch.delenv("RAY_TMPDIR")
    for name in variables:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    _record(tmp_path / used, f"127.0.0.1:{_free_port()}".encode())
    assert address.choose(_SHORT) is None
    assert str(tmp_path / used / "ray") in caplog.text


@pytest.mark.parametrize("named", [True, False])
def test_the_jobs_of_a_cluster_that_is_gone_are_not_waited_for(monkeypatch, tmp_path: Path, named: bool):
    address = f"127.0.0.1:{_free_port()}"
    if named:
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:
        _record(tmp_path, address.encode())
    with pytest.raises(ValueError, match=f"no Ray cluster answers at .*{address}.*: Connection refused"):
        JobServer(_SHORT)


def test_a_named_job_server_is_used_even_if_a_cluster_is_recorded(monkeypatch, tmp_path: Path):
    _record(tmp_path, f"127.0.0.1:{_free_port()}".encode())
    with _http() as port:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
        with pytest.raises(ValueError, match="Ray's job server is unreachable"):
            JobServer(_SHORT)


@pytest.mark.ray
def test_a_living_cluster_with_a_node_here_is_used(ray_cluster, monkeypatch, tmp_path: Path, caplog):
    running = ray.get_runtime_context().gcs_address
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_ADDRESS", running)
    assert address.choose(_SHORT) == running
    monkeypatch.delenv("RAY_ADDRESS")
    _record(tmp_path, running.encode())
    assert address.choose(_SHORT) == running
    assert not _logged(caplog)
