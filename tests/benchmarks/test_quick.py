"""Every benchmark as people run it, at its smallest; oracle: the rows that its tables must have, all with figures."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from oracle.images import jpeg, smooth

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.data.shards.write import encode_table, write_table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# (command, words that rows begin with)
RUNS = {
    "checkpoint": ("checkpoint.py", ("ours", "torch.save")),
    "cifar": ("cifar.py --data {cifar} --threads 1", ("dist_resnet", "torchvision CIFAR10, DataLoader with 2 workers")),
    "full_size": ("full_size.py --folder {folder}/full-size", ("prepare", "read as 64 workers", "order alone")),
    "loader_memory": ("loader_memory.py", ("2048",)),
    "memory": ("memory.py --threads 1", ("CIFAR ResNet-164", "bf16, recomputed")),
    "precision": ("precision.py --train {cifar} --threads 1", ("ResNet-20",)),
    "ray_helpers": ("ray_helpers.py --lean", ("ray::TrainController",)),
    "predict": (
        "predict.py --data {cifar} --threads 1",
        ("dist_resnet, jobs/predict.py", "the same network, DataLoader", "its network alone"),
    ),
    "recovery": ("recovery.py", ("ours under Ray Train", "a plain script under torchrun")),
    "remote": ("remote.py --data {shards} --latency 5", ("local disk", "store, 5 ms, cached")),
    "serving": ("serving.py", ("registration", "HTTP, 16 images a request", "images/s")),
    "step-bare": ("step.py bare", ("loop", "bare", "loop, 2 in a pass")),
    "step-ray": ("step.py ray", ("without Ray", "under Ray Train")),
    "tracking": ("tracking.py", ("ours, server hung", "mlflow.log_metrics asynchronous, server up")),
}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    images = [jpeg(smooth(200 + 2 * n, 300, n)) for n in range(64)]
    table = encode_table(images, [f"{n}.jpg" for n in range(64)], np.arange(64) % 3, ["a", "b", "c"])
    write_table(pafs.LocalFileSystem(), str(tmp_path / "shards/0.parquet"), table, rows_per_group=16)
    cifar, _ = write_demo(str(tmp_path), size=32, train_images=256, validation_images=10, seed=0)
    return {"folder": str(tmp_path), "shards": str(tmp_path / "shards"), "cifar": cifar}


@pytest.mark.slow
@pytest.mark.rehearsal
@pytest.mark.parametrize("name", RUNS)
def test_a_quick_run_gives_every_row(name: str, inputs: dict[str, str]) -> None:
    command, rows = RUNS[name]
    script, *options = command.format(**inputs).split()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options, "--quick"], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "its figures are not a measurement" in done.stdout
    for row in rows:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {row}")][:1]
        assert re.search(r"\d", line.removeprefix(f"| {row}").partition("|")[2]), line


def test_every_benchmark_is_run() -> None:
    contestants = {path.name for path in BENCHMARKS.glob("*_contestants.py")}
    parts = {"harness.py", "clock.py", "subject.py", "loader.py"}  # loader.py has its own test
    parts |= {path.name for path in BENCHMARKS.glob("gpu_*.py")}  # as has gpu_evidence.py
    assert {path.name for path in BENCHMARKS.glob("*.py")} - contestants - parts == {
        command.split()[0] for command, _ in RUNS.values()
    }
