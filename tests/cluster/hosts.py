"""Several hosts on one machine: network namespaces on a bridge, each with an address and a Ray node.

    with Hosts(3, folder) as hosts:
        hosts.start_head(cpus=1)
        hosts.start_node(1, cpus=1)
        hosts.run(0, ["ray", "job", "submit", ...])
        hosts.cut(1)
        hosts.restore(1)

Needs the rights of root and iproute2; `reason_against` says what is missing.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PORT, _DASHBOARD_PORT = 6379, 8265
_SECONDS_TO_START = 90.0


def reason_against() -> str | None:
    """Why this machine cannot have network namespaces; None if it can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"dr-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "network namespaces are not allowed here"
    try:
        link = ["ip", "-n", name, "link", "add", "br0", "type", "bridge"]
        return "network bridges are not allowed here" if subprocess.run(link, capture_output=True).returncode else None
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Hosts:
    """So many hosts, numbered from 0, at 10.77.0.1, 10.77.0.2, ...; all is taken down at the end of the block.

    They know each other by `names`, by default host0, host1, ...
    """

    def __init__(self, count: int, folder: Path, names: Sequence[str] = ()) -> None:
        self._folder = folder
        self._known_as = list(names) or [f"host{number}" for number in range(count)]
        self._prefix = f"dr{os.getpid()}"
        self._names = [f"{self._prefix}-{number}" for number in range(count)]
        self._nodes: dict[int, subprocess.Popen] = {}

    def __enter__(self) -> "Hosts":
        switch = f"{self._prefix}-switch"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(self._names):
            _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", name, "link", "set", link, "up")
            # Nothing is beyond it, but Ray takes its own address from where it leads.
            _ip("-n", name, "route", "add", "default", "dev", "eth0")
        self._folder.mkdir(parents=True, exist_ok=True)
        known = [f"{self.address(number)} {name}" for number, name in enumerate(self._known_as)]
        (self._folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
        # No name server: Ray would ask the machine's own, which is out of reach, for 12 s before it believes `hosts`.
        (self._folder / "resolv.conf").write_text("")
        (self._folder / "token").write_text(os.urandom(32).hex())
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes.values():
            _end(node)
        for name in [*self._names, f"{self._prefix}-switch"]:
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                _kill(int(pid))
            _ip("netns", "del", name)

    def address(self, host: int) -> str:
        """A host's address."""
        return f"10.77.0.{host + 1}"

    def start_head(self, *, cpus: int) -> None:
        """Starts a Ray head with token authentication on host 0 and waits until its job server answers."""
        self._start(0, "--head", f"--port={_PORT}", f"--dashboard-host={self.address(0)}", f"--num-cpus={cpus}")

    def start_node(self, host: int, *, cpus: int) -> None:
        """Starts a Ray node on a host and waits until the head counts it."""
        self._start(host, f"--address={self.address(0)}:{_PORT}", f"--num-cpus={cpus}")

    def processes(self, host: int) -> list[int]:
        """The ids of a host's processes."""
        pids = subprocess.run(["ip", "netns", "pids", self._names[host]], capture_output=True, text=True).stdout
        return [int(pid) for pid in pids.split()]

    def kill_node(self, host: int) -> None:
        """Kills every process of a host at once, as a power failure does."""
        for pid in self.processes(host):
            _kill(pid)
        self._nodes.pop(host).wait()

    def drain_node(self, host: int) -> None:
        """Sends a host's Ray node SIGTERM, as a preemption does; the node ends some time later."""
        os.kill(self._nodes[host].pid, signal.SIGTERM)

    def has_ended(self, host: int) -> bool:
        """Whether a host's Ray node has ended."""
        return self._nodes[host].poll() is not None

    def cut(self, host: int) -> None:
        """Takes a host off the network; its processes continue."""
        _ip("-n", self._names[host], "link", "set", "eth0", "down")

    def restore(self, host: int) -> None:
        """Puts a host back on the network."""
        _ip("-n", self._names[host], "link", "set", "eth0", "up")

    def popen(self, host: int, command: Sequence[str], **options: object) -> subprocess.Popen:
        """Starts a command on a host."""
        environment = self.environment | dict(options.pop("env", {}))  # pyrefly: ignore
        return subprocess.Popen(
            [*self.entering(host, self._folder / "ray"), *command],
            env=environment,
            start_new_session=True,
            **options,  # pyrefly: ignore
        )

    def entering(self, host: int, ray_folder: Path) -> list[str]:
        """The words before a command that run it on a host, where `ray_folder` is a folder of the host's own.

        So are folders of the same name on machines of their own.
        """
        own = self._folder / f"host{host}"
        for folder in (own, ray_folder):
            folder.mkdir(exist_ok=True)
        binds = (
            'mount --bind "$1" "$2" && mount --bind "$3/hosts" /etc/hosts '
            '&& mount --bind "$3/resolv.conf" /etc/resolv.conf && shift 3 && exec "$@"'
        )
        mount = ["sh", "-c", binds, "sh", str(own), str(ray_folder), str(self._folder)]
        return ["ip", "netns", "exec", self._names[host], *mount]

    def nodes(self) -> set[str]:
        """The Ray nodes that are alive according to the head; none if it does not answer."""
        code = (
            "import json, sys, urllib.request; request = urllib.request.Request(sys.argv[1], "
            "headers={'Authorization': 'Bearer ' + open(sys.argv[2]).read()}); "
            "print(urllib.request.urlopen(request, timeout=5).read().decode())"
        )
        url = f"http://{self.address(0)}:{_DASHBOARD_PORT}/api/v0/nodes"
        done = subprocess.run(
            ["ip", "netns", "exec", self._names[0], sys.executable, "-c", code, url, str(self._folder / "token")],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return set()
        nodes = json.loads(done.stdout)["data"]["result"]["result"]
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    @property
    def environment(self) -> Mapping[str, str]:
        """What every process on the hosts gets."""
        return dict(os.environ) | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._folder / "token"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            # The head notices within seconds, not half a minute, that a host has vanished.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "4",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_API_SERVER_ADDRESS": f"http://{self.address(0)}:{_DASHBOARD_PORT}",
            "HOME": str(self._folder),
        }

    def _start(self, host: int, *options: str) -> None:
        """Starts a Ray node and waits until the head knows it."""
        known = self.nodes()
        command = ["ray", "start", "--block", f"--node-ip-address={self.address(host)}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", *options]
        if host == 0:
            command.append(f"--temp-dir={self._folder}/ray")
        log_file = self._folder / f"host{host}.log"
        with log_file.open("ab") as log:
            self._nodes[host] = self.popen(host, command, stdout=log, stderr=log)

        deadline = time.monotonic() + _SECONDS_TO_START
        while not self.nodes() - known:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no Ray node came up on host {host}:\n{log_file.read_text()[-3000:]}")
            time.sleep(0.5)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _end(node: subprocess.Popen) -> None:
    _kill(node.pid)
    node.wait()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
