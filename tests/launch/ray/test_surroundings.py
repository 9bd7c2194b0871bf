"""Environments in which Ray would fail. Oracle: bash and the kernel, which refuse and accept the same."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dist_resnet.launch.ray import surroundings


@pytest.mark.parametrize(
    "folder",
    [
        *("plain", "a b", "tab\there", "it's", 'quo"te', "do$llar", "a&b", "semi;colon", "(brackets)", "back\\slash"),
        *(
            "a`b",
            "less<more",
            "pi|pe",
            "{a,b}",
            "a~b",
            "#hash",
            "\u00fcn\u00efc\u00f6d\u00eb",
            "p%20ct",
            "a=b",
            "{one}",
        ),
        *("a!b", "@home,sweet+home"),
    ],
)
def test_a_python_is_refused_if_a_shell_cannot_find_it(tmp_path: Path, folder: str):
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to("/bin/true")
    # As Ray starts its workers.
    found = subprocess.run(["bash", "-c", f"exec {python} --version"], capture_output=True).returncode == 0
    if found:
        surroundings.check_executable(str(python))
    else:
        with pytest.raises(ValueError, match="UV_PROJECT_ENVIRONMENT"):
            surroundings.check_executable(str(python))


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_folder_is_refused_exactly_if_the_kernel_refuses_the_sockets_of_a_session(letter: str):
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        longest = None
        for length in range(1, 90):
            folder = f"{short}/{letter * length}"
            os.makedirs(os.path.dirname(f"{folder}/{session}"))
            with socket.socket(socket.AF_UNIX) as server:
                try:
                    server.bind(f"{folder}/{session}")
                except OSError:
                    break
            surroundings.check_socket_paths(folder)
            longest = length
        assert longest
        with pytest.raises(ValueError, match="set RAY_TMPDIR to a path at least . bytes shorter"):
            surroundings.check_socket_paths(f"{short}/{letter * (longest + 1)}")


@pytest.mark.parametrize(("variable", "value"), [("TMPDIR", ""), ("TMPDIR", "tmp"), ("RAY_TMPDIR", "here")])
def test_a_relative_folder_is_refused(monkeypatch, variable: str, value: str):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"got '{value}'; set {variable} to a path that starts with /"):
        surroundings.check()


def test_folders_that_are_not_writable_are_refused_and_those_that_can_be_created_are_not(tmp_path: Path, monkeypatch):
    surroundings.check_writable(str(tmp_path / "new" / "ray"), "")
    assert not (tmp_path / "new").exists()
    (tmp_path / "ray").touch()
    for folder in (tmp_path / "ray", tmp_path / "ray" / "below", Path("/proc/ray")):
        with pytest.raises(ValueError, match=rf"{folder} is not writable \(.+\); do this"):
            surroundings.check_writable(str(folder), "do this")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_of_somebody_else_is_refused():
    with pytest.raises(ValueError, match="Permission denied"):
        surroundings.check_writable("/root/ray" if os.path.isdir("/root") else "/ray", "")


_CHECK = """
import json, os, sys
from dist_resnet.launch.ray import surroundings

# Each in its own process, because Ray caches the token that it found.
for variables in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ.update(variables)
        try:
            surroundings.check()
            print("starts", flush=True)
        except ValueError as refusal:
            print(refusal, flush=True)
        os._exit(0)
    os.wait()
"""


def test_an_environment_is_refused_with_the_variable_to_set():
    unwritable = "/file/.ray is not writable (Not a directory); Ray keeps its token there; set RAY_AUTH_TOKEN"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder, "file").touch()
        file = f"{folder}/file"
        cases = [
            ({}, "starts"),
            ({"HOME": file}, unwritable),
            ({"HOME": file, "RAY_AUTH_MODE": "disabled"}, "starts"),
            ({"HOME": file, "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}, "starts"),
            ({"RAY_AUTH_TOKEN_PATH": f"{folder}/none"}, "Ray finds no token at RAY_AUTH_TOKEN_PATH"),
            ({"RAY_TMPDIR": file}, "set RAY_TMPDIR to a writable folder"),
            ({"TMPDIR": file}, "set TMPDIR to a writable folder"),
        ]
        unset = ("TMPDIR", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        environment = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": folder}
        program = [sys.executable, "-c", _CHECK, json.dumps([variables for variables, _ in cases])]
        lines = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(cases)
    for line, (_, expected) in zip(lines, cases, strict=True):
        assert expected in line
