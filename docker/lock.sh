#!/usr/bin/env bash
# Writes the images' locks anew from pyproject.toml: every package with its version and the sha256 of its files.
#     docker/lock.sh            # as new as pyproject.toml's exclude-newer allows
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
    uv pip compile --quiet --generate-hashes --no-annotate --no-header \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}

# PyTorch's builds for the CPU have an index of their own. The Dockerfile takes them from there by the versions that
# the GPU's lock has; here are only the packages that they need.
lock pyproject.toml docker/locks/cpu.in --extra server --excludes docker/locks/cpu-excludes.txt \
    --output-file docker/locks/cpu.txt
# A run's head and its workers hold the same versions.
lock pyproject.toml --constraints docker/locks/cpu.txt --output-file docker/locks/gpu.txt
lock docker/locks/build.in --output-file docker/locks/build.txt
