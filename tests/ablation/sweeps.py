"""Sweeps written by hand: `sweep.json` and the journals of trials."""

from typing import Any

from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.records import Diverged, Finished, Metrics, Session
from dist_resnet.tracking.run_directory import RunDirectory

MODEL = {
    "shortcut": "identity",
    "placement": "original",
    "gate_bias": -6.0,
    "shortcut_scale": 0.5,
    "residual_scale": 0.5,
    "dropout_rate": 0.5,
}


def cell(row: str, trial: str, **changes: Any) -> dict[str, Any]:
    """An entry of `sweep.json`: ResNet-110 on CIFAR-10 in Table 2, seed 0; `changes` replace or add fields."""
    entry = {"table": "2", "row": row, "depth": 110, "dataset": "cifar10", "paper_error": 6.61, "paper_fail": False}
    entry |= {"seed": 0, "trial": trial, "fingerprint": "f" * 64, "model": MODEL} | changes
    return {"key": f"{entry['table']}-{row}-{entry['depth']}"} | entry


def write_sweep(
    directory: RunDirectory, cells: list[dict[str, Any]], *, iterations: int = 64_000, **facts: Any
) -> None:
    """Writes `sweep.json`."""
    known = {"seeds": [0], "global_batch": 128, "commit": "c0ffee", "hardware": "2 cores", "created": "2026-11-21"}
    directory.write_json("sweep.json", {"cells": cells, "iterations": iterations} | known | facts)


def write_trial(
    directory: RunDirectory, name: str, errors: dict[int, float], *, end: str | None = None, train: str = "a" * 64
) -> None:
    """Writes a trial that evaluated to `errors` (step -> percent), and ended `finished`, `diverged` or not yet."""
    trial = RunDirectory(directory.child(name))
    data = {"train_digest": train, "validation_digest": "b" * 64}
    trial.write_json("recipe.json", {"fingerprint": "9" * 64, "recipe": {"data": data}})
    journal = Journal(trial)
    journal.append(Session(start_step=0, total_steps=64_000, device="CPU, 1 threads each"))
    for step, error in errors.items():
        journal.append(Metrics(step=step, values={"train/loss": 100 / step}))
        journal.append(Metrics(step=step, values={"val/top1_error": error / 100}))
    last = max(errors, default=0)
    if end == "finished":
        journal.append(Finished(steps=last, top1_error=errors[last] / 100, images_per_second=1234.5))
    elif end == "diverged":
        journal.append(Diverged(step=last))
    journal.commit()
