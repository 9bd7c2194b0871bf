"""The results of one or more sweeps as data: JSON with an entry for each cell and seed, and CSV with all curves.

Errors are fractions, as in the journals. No path of a machine is written.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dist_resnet.ablation.results import Cell, Sweep, Trial, read_sweep
from dist_resnet.tracking.run_directory import RunDirectory

_FORMAT = 1
_CURVE_COLUMNS = ("step", "training_seconds", "training_loss", "top1_error")
_SWEEP_FACTS = ("iterations", "seeds", "global_batch", "early_stop", "commit", "hardware", "created")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cell trained with one seed in one of the sweeps."""

    sweep_name: str
    sweep: Sweep
    cell: Cell
    trial: Trial

    @property
    def iterations(self) -> int:
        """Optimizer steps of the whole run."""
        return self.sweep.iterations

    @property
    def commit(self) -> str | None:
        """The commit that the trial's sessions ran; the sweep's if theirs is unknown."""
        known = self.trial.commit
        return known if known and "unknown" not in known else self.sweep.facts.get("commit")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The entries of one or more sweeps."""

    sweeps: dict[str, Sweep]
    """By name."""
    entries: list[Entry]

    @property
    def lengths(self) -> list[int]:
        """The different numbers of iterations of the entries, largest first."""
        return sorted({entry.iterations for entry in self.entries}, reverse=True)

    def cells(self, iterations: int) -> list[Cell]:
        """The networks that were trained for so many iterations, each with the trials of all sweeps and tables.

        Rows that several tables share, such as the original unit, are one cell.
        """
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if entry.iterations == iterations:
                network = (entry.cell.dataset, entry.cell.depth, entry.cell.model)
                found.setdefault(json.dumps(network, sort_keys=True), []).append(entry)
        return [_merged(entries) for entries in found.values()]


def read_record(directories: Sequence[RunDirectory]) -> Record:
    """The record of the sweeps in these directories.

    Raises FileNotFoundError if a directory holds no sweep. Raises ValueError if no directory is given, or if two sweeps
    have the same name, or the same cell with the same iterations and seed.
    """
    if not directories:
        raise ValueError("no sweep was given; name at least one by its folder or URI, STORAGE/NAME")
    sweeps: dict[str, Sweep] = {}
    for directory in directories:
        name = directory.name
        if name in sweeps:
            raise ValueError(f"two sweeps are called {name}; results name sweeps by their folders, rename one of them")
        sweeps[name] = read_sweep(directory)
    entries = [
        Entry(sweep_name=name, sweep=sweep, cell=cell, trial=trial)
        for name, sweep in sweeps.items()
        for cell in sweep.cells
        for trial in cell.trials
    ]
    _check_different(entries)
    return Record(sweeps=sweeps, entries=entries)


def to_json(record: Record, *, written: str) -> dict[str, Any]:
    """The record as JSON values: `cells` with a result, and `unfinished` ones with their progress."""
    return {
        "format": _FORMAT,
        "written": written,
        "errors": "fractions of the test images, top-1; published: the paper's or the replication's",
        "sweeps": [_sweep(name, sweep) for name, sweep in record.sweeps.items()],
        "cells": [_result(entry) for entry in record.entries if entry.trial.is_over],
        "unfinished": [_unfinished(entry) for entry in record.entries if not entry.trial.is_over],
    }


def to_csv(record: Record) -> str:
    """Every evaluation of every cell and seed, including unfinished trials, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_identity(record.entries[0]), "state", *_CURVE_COLUMNS))
    for entry in record.entries:
        for point in entry.trial.evaluations:
            values = [getattr(point, column) for column in _CURVE_COLUMNS]
            writer.writerow((*_identity(entry).values(), entry.trial.state, *values))
    return text.getvalue()


def _identity(entry: Entry) -> dict[str, Any]:
    cell = entry.cell
    return {
        "cell": cell.row,
        "table": cell.table,
        "key": cell.key,
        "depth": cell.depth,
        "dataset": cell.dataset,
        "iterations": entry.iterations,
        "seed": entry.trial.seed,
        "sweep": entry.sweep_name,
    }


def _sweep(name: str, sweep: Sweep) -> dict[str, Any]:
    trials = sweep.trials
    return {
        "name": name,
        "trials": len(trials),
        "over": sum(trial.is_over for trial in trials),
        **{key: sweep.facts.get(key) for key in _SWEEP_FACTS},
    }


def _result(entry: Entry) -> dict[str, Any]:
    trial, error = entry.trial, entry.cell.paper_error
    best = min(trial.evaluations, key=lambda point: point.top1_error, default=None)
    return _identity(entry) | {
        "top1_error": trial.outcome.top1_error,
        "top5_error": trial.outcome.top5_error,
        "best_top1_error": best.top1_error if best else None,
        "best_step": best.step if best else None,
        "diverged": trial.state == "diverged",
        "steps": trial.steps,
        "published": None if error is None or math.isinf(error) else round(error / 100, 6),
        "published_fail": error == math.inf,
        "training_loss": _finite(trial.final_loss),
        "training_seconds": trial.evaluations[-1].training_seconds if trial.evaluations else None,
        "images_per_second": trial.images_per_second,
        **_sessions(trial),
        "precision": trial.precision,
        "commit": entry.commit,
        "hardware": entry.sweep.facts.get("hardware"),
        "device": trial.device,
        "fingerprint": trial.fingerprint,
        "weights_sha256": trial.outcome.weights_sha256,
        "train_digest": trial.data[0],
        "validation_digest": trial.data[1],
    }


def _unfinished(entry: Entry) -> dict[str, Any]:
    trial = entry.trial
    newest = trial.evaluations[-1] if trial.evaluations else None
    return _identity(entry) | {
        "state": trial.state,
        "steps": trial.steps,
        "newest_top1_error": newest.top1_error if newest else None,
        "newest_evaluation_step": newest.step if newest else None,
        **_sessions(trial),
    }


def _sessions(trial: Trial) -> dict[str, Any]:
    counts = dataclasses.asdict(trial.sessions)
    return {"restarts": trial.sessions.restarts} | counts


def _check_different(entries: Iterable[Entry]) -> None:
    known: dict[tuple, str] = {}
    for entry in entries:
        what = (entry.cell.key, entry.cell.dataset, entry.iterations, entry.trial.seed)
        if known.setdefault(what, entry.sweep_name) != entry.sweep_name:
            raise ValueError(
                f"{known[what]} and {entry.sweep_name} both hold {entry.cell.key} for {entry.iterations} iterations "
                f"with seed {entry.trial.seed}; give only one of them"
            )


def _merged(entries: Sequence[Entry]) -> Cell:
    """One cell for all entries of a network."""
    published = [entry.cell for entry in entries if entry.cell.paper_error is not None]
    cell = published[0] if published else entries[0].cell
    trials = {(entry.sweep_name, entry.trial.name): entry.trial for entry in entries}
    return dataclasses.replace(cell, trials=list(trials.values()))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
