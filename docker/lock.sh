#!/usr/bin/env bash
# Writes the images' locks from pyproject.toml: every package with its version and the sha256 of its files.
#     docker/lock.sh            # as new as pyproject.toml's exclude-newer allows
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
    uv pip compile --quiet --generate-hashes --no-annotate --no-header \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}

# PyTorch's builds for the CPU have their own index. The Dockerfile installs them from there in the versions of the GPU's
# lock; this lock has only the packages that they need.
lock pyproject.toml docker/locks/cpu.in --extra server --excludes docker/locks/cpu-excludes.txt \
    --output-file docker/locks/cpu.txt
# Constrained so that a run's head and workers have the same versions.
lock pyproject.toml --constraints docker/locks/cpu.txt --output-file docker/locks/gpu.txt
lock docker/locks/build.in --output-file docker/locks/build.txt
