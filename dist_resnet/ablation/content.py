"""The content of a sweep: its runs, as planned and as `sweep.json` lists them. Needs no Ray."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from dist_resnet.ablation.grid import Cell, Choice, Images, bases, choose, trial_name
from dist_resnet.ablation.trial import Trial
from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.shards.split import Split, open_split
from dist_resnet.launch.plan import Plan, prepare
from dist_resnet.recipe import Data, Execution, Recipe, flatten
from dist_resnet.storage.uri import absolute_uri
from dist_resnet.tracking import provenance
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.records import FINAL_ENDINGS
from dist_resnet.tracking.run_directory import SWEEP_FILE, RunDirectory


def chosen_cells(recipe: Recipe, choice: Choice, images: Images) -> list[Cell]:
    """The chosen cells, with the epochs that give the chosen iterations on these images.

    Raises ValueError or FileNotFoundError for an impossible choice, and for images that are missing or of other
    classes.
    """
    choose(choice, bases(recipe, choice, images))
    splits = {dataset: _open(images.data(dataset), dataset) for dataset in choice.datasets}
    sizes: dict[str, int] = {dataset: train.num_images for dataset, train in splits.items()}
    return choose(choice, bases(recipe, choice, images, sizes))


def plan_trials(
    cells: Sequence[Cell], seeds: int, directory: RunDirectory, execution: Execution
) -> tuple[list[Trial], list[dict[str, Any]]]:
    """The runs, each once, and the entries of `sweep.json`, one for each cell and seed."""
    by_recipe: dict[str, list[Cell]] = {}
    for cell in cells:
        by_recipe.setdefault(cell.recipe.fingerprint(), []).append(cell)
    trials: dict[tuple[str, int], Trial] = {}
    for fingerprint, sharing in by_recipe.items():
        first = prepare(
            sharing[0].recipe,
            dataclasses.replace(execution, storage=directory.uri, name=trial_name(sharing[0], 0)),
            job="",
        )
        for seed in range(seeds):
            trials[fingerprint, seed] = Trial(_with_seed(first, directory, trial_name(sharing[0], seed), seed), sharing)
    entries = [
        _entry(cell, seed, trials[cell.recipe.fingerprint(), seed].plan) for cell in cells for seed in range(seeds)
    ]
    return list(trials.values()), entries


def content_of(
    entries: Sequence[dict[str, Any]], choice: Choice, recipe: Recipe, *, early_stop: bool = False
) -> dict[str, Any]:
    """The content of `sweep.json` but for the facts of its start."""
    return {
        "cells": list(entries),
        "iterations": choice.iterations,
        "seeds": choice.seeds,
        "global_batch": recipe.global_batch,
        "early_stop": early_stop,
    }


def check_grid(directory: RunDirectory, content: dict[str, Any]) -> None:
    """Raises ValueError if the directory holds something else, or a sweep with another grid, naming the differences."""
    directory.check_kind("sweep")
    known = directory.read_json(SWEEP_FILE)
    if known is None:
        return
    differences = [
        f"{key} (was {known.get(key)}, now {value})"
        for key, value in content.items()
        if key != "cells" and known.get(key) != value
    ]
    was, now = ({entry["key"]: entry for entry in each["cells"]} for each in (known, content))
    for word, only in (("without", was.keys() - now.keys()), ("with", now.keys() - was.keys())):
        if only:
            differences.append(f"now {word} {', '.join(sorted(only)[:3])}{' ...' if len(only) > 3 else ''}")
    prints = [
        {(entry["key"], entry["seed"]): entry["fingerprint"] for entry in each["cells"]} for each in (known, content)
    ]
    if not differences and prints[0] != prints[1]:
        changed = next(key for key in prints[1] if prints[0].get(key) != prints[1][key])
        differences.append(f"the recipe of {changed[0]} ({_recipe_difference(directory, was, now, changed[0])})")
    if differences:
        raise ValueError(
            f"the name {directory.name} is used by a sweep with another grid: "
            f"{'; '.join(differences)}; use another --execution.name, or the same options to resume that sweep"
        )


def facts_of_start(hardware: str) -> dict[str, str]:
    """What `sweep.json` says of a sweep's start: commit, hardware, time."""
    return {
        "commit": provenance.collect()["commit"],
        "hardware": hardware,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def has_ended(plan: Plan) -> bool:
    """Whether a run's journal has its final record."""
    records = read_journal(plan.directory)
    return bool(records) and isinstance(records[-1], FINAL_ENDINGS)


def _open(data: Data, dataset: str) -> Split:
    """The training split. Raises ValueError if a split has too many classes, or the training split too few."""
    expected = DATASETS[dataset].num_classes
    train, validation = (
        open_split(absolute_uri(uri), label_column=data.label_column) for uri in (data.train, data.validation)
    )
    for split in (train, validation):
        found = len(split.class_names) if split.class_names is not None else split.label_range[1] + 1
        if found > expected or (split is train and found < expected):
            raise ValueError(
                f"{dataset} has {expected} classes, but the shards at {split.uri} have {found}; give other shards with "
                "--data, or other data sets with --datasets"
            )
    return train


def _with_seed(plan: Plan, directory: RunDirectory, name: str, seed: int) -> Plan:
    return dataclasses.replace(
        plan,
        recipe=dataclasses.replace(plan.recipe, seed=seed),
        execution=dataclasses.replace(plan.execution, name=name),
        directory=RunDirectory(directory.child(name)),
    )


def _entry(cell: Cell, seed: int, plan: Plan) -> dict[str, Any]:
    return {
        "key": cell.key,
        "table": cell.table,
        "row": cell.row,
        "depth": cell.depth,
        "dataset": cell.dataset,
        "paper_error": cell.paper_error,
        "paper_fail": cell.paper_fail,
        "seed": seed,
        "trial": plan.name,
        "fingerprint": plan.recipe.fingerprint(),
        "model": dataclasses.asdict(cell.recipe.model),
    }


def _recipe_difference(directory: RunDirectory, was: dict, now: dict, key: str) -> str:
    before, after = flatten(was[key]["model"]), flatten(now[key]["model"])
    fields = [f"{name}: was {before.get(name)}, now {after[name]}" for name in after if before.get(name) != after[name]]
    return ", ".join(fields) or "its images, optimizer, schedule or evaluations"
