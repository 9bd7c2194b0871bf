"""docker/Dockerfile and its locks. Oracles: hadolint, pyproject.toml's own requirements, the files themselves."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import dist_resnet

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
LOCKS = {name: (ROOT / "docker" / "locks" / f"{name}.txt").read_text() for name in ("build", "cpu", "gpu")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _stages() -> dict[str, str]:
    """Each stage's instructions, with its lines joined, by its name."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", TEXT))
    parts = re.split(r"(?m)^FROM \S+ AS (\S+)\n", joined)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _pins(name: str) -> dict[str, Version]:
    return {found[1]: Version(found[2]) for found in re.finditer(r"(?m)^([a-z0-9-]+)==(\S+) \\$", LOCKS[name])}


def _requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(hadolint), str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    broken = TEXT.replace("debian:12.13-slim AS base", "debian AS base")
    found = subprocess.run([str(hadolint), "-"], input=broken, capture_output=True, text=True)
    assert "DL3006" in found.stdout


def test_bases_are_pinned_and_stages_are_each_other():
    stages = set(_stages())
    for base in re.findall(r"(?m)^FROM (\S+)", TEXT):
        assert base in stages or re.fullmatch(r"[a-z]+:\d+\.\d+-slim", base), base
    for source in re.findall(r"--from=(\S+)", TEXT):
        assert source in stages


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_target_runs_as_an_ordinary_user_with_a_health_check_and_labels(target):
    stage, base = _stages()[target], _stages()["base"]
    assert stage.rstrip().splitlines()[-1] == "USER 1000"
    assert "useradd --create-home --uid 1000" in base
    assert base.count("HEALTHCHECK") == base.count("\nCMD [") == 1
    for label in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in base
    assert "org.opencontainers.image.revision=$COMMIT" in stage
    # hatchling, uv and pip are not in the image.
    assert f"COPY --from={target}-packages /opt/venv /opt/venv" in stage
    assert "/build" not in stage


def test_the_version_is_the_projects():
    assert f'image.version="{dist_resnet.__version__}"' in TEXT


def test_no_secret_is_built_in():
    for words in re.findall(r"(?m)^(?:ARG|ENV) (.*)$", "\n".join(_stages().values())):
        assert not re.search(r"(?i)password|secret|token=|_key", words.replace("RAY_AUTH_MODE=token", "")), words


def test_package_lists_are_removed_in_the_layer_that_fetched_them():
    runs = [line for stage in _stages().values() for line in stage.splitlines() if "apt-get install" in line]
    assert len(runs) == 4
    for line in runs:
        assert line.startswith("RUN apt-get update")
        assert "--no-install-recommends" in line
        assert line.endswith("rm -rf /var/lib/apt/lists/*")


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_its_version_and_digest(name):
    packages = re.split(r"(?m)^(?=[a-z])", LOCKS[name])[1:]
    assert len(packages) == len(_pins(name)) > 5
    for package in packages:
        assert "--hash=sha256:" in package, package.splitlines()[0]
    installs = [line for line in TEXT.splitlines() if f"/locks/{name}.txt" in line and "install" in line]
    assert installs
    assert all("--require-hashes" in line for line in installs if "torch" not in line)


@pytest.mark.parametrize(("name", "extras"), [("cpu", ("server",)), ("gpu", ())])
def test_the_locks_satisfy_the_projects_requirements(name, extras):
    pins = _pins(name)
    for requirement in _requirements(*extras):
        if requirement.name in ("torch", "torchvision"):
            assert (requirement.name in pins) == (name == "gpu")
            pin = _pins("gpu")[requirement.name]
        elif requirement.name == "dist_resnet":
            continue
        else:
            pin = pins[requirement.name.replace("_", "-")]
        assert requirement.specifier.contains(pin), f"{requirement} but {pin}: run docker/lock.sh"


def test_both_images_hold_the_same_versions():
    cpu, gpu = _pins("cpu"), _pins("gpu")
    assert {name: cpu[name] for name in cpu.keys() & gpu.keys()} == {
        name: gpu[name] for name in cpu.keys() & gpu.keys()
    }
    # CUDA comes with PyTorch's wheel and its own; on the CPU only what DALI links to is there.
    assert {"nvidia-cudnn-cu13", "nvidia-nccl-cu13", "triton"} <= gpu.keys() - cpu.keys()
    assert gpu["nvidia-cuda-runtime"].major == 13


def test_files_that_the_dockerfile_copies_exist_and_are_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for words in re.findall(r"(?m)^COPY (?!--from)(.*)$", TEXT):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == line[1:] or source.startswith(line[1:] + "/") for line in ignored if line[0] == "!")
