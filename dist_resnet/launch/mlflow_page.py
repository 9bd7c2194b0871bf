"""The content of a run's page in MLflow: its description at the start, its files at the end."""

import csv
import io
import logging
import shlex
from collections.abc import Iterable, Sequence

import numpy as np

from dist_resnet.data.shards import classes
from dist_resnet.data.shards.split import Split
from dist_resnet.launch.plan import Plan
from dist_resnet.model import complexity
from dist_resnet.recipe import flatten
from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking import provenance
from dist_resnet.tracking.journal import history, read_journal
from dist_resnet.tracking.mlflow.run_description import DataSet, RunDescription
from dist_resnet.tracking.plots import confusion_matrix, training_curve
from dist_resnet.tracking.records import Damaged
from dist_resnet.train import checkpoint
from dist_resnet.train.run_images import AUGMENTED_BATCH, CONFUSION

logger = logging.getLogger(__name__)

CURVE_FILE, DAMAGED_FILE = "training_curve.png", "damaged_images.csv"
NOTE = """{model} with {shortcut} shortcuts: {parameters:.2f} M parameters, {multiply_adds:.2f} G multiply-adds for an
image of {size} x {size}.

* All files of this run, including the complete journal: `{directory}`
* Its checkpoints: `{checkpoints}`
* To evaluate the newest checkpoint: `python jobs/evaluate.py --run {quoted}`
* To register the model: `python jobs/register_model.py --run {quoted}`
"""


def run_description(plan: Plan) -> RunDescription:
    """The description for MLflow of a run that has claimed its directory."""
    recipe, directory = plan.recipe, without_credentials(plan.directory.uri)
    size = recipe.evaluation.crops[0]
    cost = complexity.measure(recipe.model, size)
    summary = {"parameters": cost.parameters, "multiply_adds": cost.multiply_adds}
    note = NOTE.format(
        model=f"Pre-activation ResNet-{recipe.model.depth}"
        if recipe.model.placement == "full_preactivation"
        else f"ResNet-{recipe.model.depth}, {recipe.model.placement}",
        shortcut=recipe.model.shortcut,
        parameters=cost.parameters / 1e6,
        multiply_adds=cost.multiply_adds / 1e9,
        size=size,
        directory=directory,
        checkpoints=without_credentials(plan.directory.child(checkpoint.FOLDER)),
        quoted=shlex.quote(directory),
    ) + "".join(f"* {without_credentials(line)}\n" for line in plan.notes)
    return RunDescription(
        experiment=plan.execution.tracking.experiment,
        name=plan.name,
        params=recipe.flat() | flatten({"execution": {"workers": plan.execution.workers}, "model": summary}),
        tags=provenance.collect()
        | {"fingerprint": recipe.fingerprint(), "run_directory": directory, "mlflow.note.content": note},
        texts={
            "recipe.json": without_credentials(plan.directory.read("recipe.json").decode()),
            "environment.txt": provenance.environment(),
        },
        data_sets=(_data_set(plan, plan.train, "training"), _data_set(plan, plan.validation, "validation")),
    )


def _data_set(plan: Plan, split: Split, context: str) -> DataSet:
    return DataSet(
        name=f"{plan.recipe.data.dataset} {context}",
        digest=split.digest,
        context=context,
        source=without_credentials(split.uri),
        images=split.num_images,
        classes=len(split.class_names) if split.class_names else plan.recipe.model.num_outputs,
    )


def result_files(plan: Plan) -> dict[str, bytes]:
    """The plots and tables of a run, by file name, also written to its directory: the training curve, a batch as the
    network saw it, the confusion matrix, the classes with the highest error and the damaged images, if they exist."""
    files = {}
    try:
        records = read_journal(plan.directory)
        if points := history(records):
            files[CURVE_FILE] = training_curve(points, plan.name)
        if damaged := [record for record in records if isinstance(record, Damaged)]:
            columns = ("split", "file", "row", "reason")
            files[DAMAGED_FILE] = _csv(columns, ([getattr(record, name) for name in columns] for record in damaged))
        if plan.directory.exists(AUGMENTED_BATCH):
            files[AUGMENTED_BATCH] = plan.directory.read(AUGMENTED_BATCH)
        if plan.directory.exists(CONFUSION):
            files |= _confusion_files(plan)
        for name, content in files.items():
            plan.directory.write(name, content)
    except Exception as error:
        # A plot must never keep a run from finishing.
        logger.warning("cannot write the run's plots to %s: %s", plan.directory.uri, error)
    return files


def _confusion_files(plan: Plan) -> dict[str, bytes]:
    counts = np.load(io.BytesIO(plan.directory.read(CONFUSION)), allow_pickle=False)
    names = classes.for_outputs(plan.classes, len(counts)) if plan.classes else classes.numbers(len(counts))
    return {
        "confusion_matrix.png": confusion_matrix(counts, names, plan.name),
        "worst_classes.csv": _worst_classes(counts, names),
    }


def _worst_classes(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """A row for each class that has images, the worst first: name, images, error, most frequent wrong prediction."""
    lines = []
    for label, row in enumerate(counts):
        others = row.copy()
        others[label] = 0
        if row.sum():
            taken = names[int(others.argmax())] if others.any() else ""
            lines.append((1 - row[label] / row.sum(), names[label], int(row.sum()), taken))
    lines.sort(key=lambda line: -line[0])
    columns = ("class", "images", "top1_error", "most_often_taken_for")
    return _csv(columns, ((name, images, f"{error:.4f}", taken) for error, name, images, taken in lines))


def _csv(columns: Sequence[str], rows: Iterable[Sequence]) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(columns)
    writer.writerows(rows)
    return table.getvalue().encode()
