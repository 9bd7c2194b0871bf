"""docs/extending.md. Oracle: git applies each diff to a copy of the package, which then does what the section says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from oracle.sources import expected_rows, prepared_rows, small_images

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.data.shards.split import open_split

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "extending.md"

_TRAIN = """
import dataclasses, os, sys, time
from dist_resnet.launch import local
from dist_resnet.recipe import *
from dist_resnet.train import step

storage = sys.argv[3]
recipe = Recipe(
    model=Model(depth=8, num_classes=4, **{model}),
    data=Data(train=sys.argv[1], validation=sys.argv[2], dataset="cifar10"),
    augment=Augment(kind="pad", size=32),
    optimizer=Optimizer(**{optimizer}),
    schedule=Schedule(learning_rate={learning_rate}, kind="cosine"),
    evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
    epochs=3,
    global_batch=32,
    ghost_batch=8,
)
execution = Execution(
    device="cpu",
    cpus_per_worker=1,
    storage=storage,
    checkpoints=Checkpoints(every=4),
    tracking=Tracking(register=False),
)

def train(name):
    execution_of_it = dataclasses.replace(execution, name=name)
    return local.run(local.prepare_run(recipe, execution_of_it, job="test"))

if sys.argv[4:] == ["dies"]:
    steps, set_learning_rate = [], step.set_learning_rate
    def counted(*arguments):
        steps.append(arguments)
        while len(steps) == 6 and not os.path.exists(f"{{storage}}/broken/checkpoints/step_00000004/manifest.json"):
            time.sleep(0.01)
        os._exit(9) if len(steps) == 6 else set_learning_rate(*arguments)
    step.set_learning_rate = counted
    train("broken")
broken, whole = train("broken"), train("whole")
assert broken["weights_sha256"] == whole["weights_sha256"]
print(whole["top1_error"])
"""


def _sections() -> dict[str, str]:
    """Each section's diff by the last word of its heading."""
    found = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading, diff = section.partition("\n")[0], re.search(r"```diff\n(.*?)```", section, re.DOTALL)
        if diff:
            found[heading.removeprefix("A new ")] = diff.group(1)
    return found


def _extended(section: str, folder: Path) -> Path:
    """A copy of the package with a section's diff applied."""
    diff = _sections()[section]
    assert len(re.findall(r"^diff --git", diff, re.MULTILINE)) <= 3
    shutil.copytree(REPOSITORY / "dist_resnet", folder / "dist_resnet", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-"], input=diff, cwd=folder, text=True, check=True)
    return folder


def _run(folder: Path, code: str, *arguments: str, expected: int = 0) -> str:
    """The output of a script that uses the package in its folder, which shadows the installed one."""
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("section", "model", "optimizer", "learning_rate"),
    [
        ("shortcut", {"shortcut": "learned_scaling"}, {}, 0.05),
        pytest.param("optimizer", {}, {"kind": "adamw"}, 0.001, marks=pytest.mark.slow),
    ],
)
def test_a_network_trains_and_resumes_exactly_after_a_kill(
    section: str, model: dict, optimizer: dict, learning_rate: float, tmp_path: Path
):
    shards = write_demo(str(tmp_path / "demo"), size=32, num_classes=4, train_images=96, validation_images=40, seed=0)
    folder, runs = _extended(section, tmp_path), str(tmp_path / "runs")
    code = _TRAIN.format(model=model, optimizer=optimizer, learning_rate=learning_rate)
    _run(folder, code, *shards, runs, "dies", expected=9)
    assert sorted(entry.name for entry in (tmp_path / "runs/broken/checkpoints").iterdir())[-1] == "step_00000004"
    # Chance is 0.75; three epochs on easy classes reach much less.
    assert float(_run(folder, code, *shards, runs).splitlines()[-1]) < 0.6


def test_a_folder_with_a_table_of_labels_in_json_lines_becomes_a_data_set(tmp_path: Path):
    images = small_images()["train"]
    (tmp_path / "raw").mkdir()
    rows = []
    for label, files in images.items():
        for name, encoded in files:
            (tmp_path / "raw" / name).write_bytes(encoded)
            rows.append(json.dumps({"file": name, "label": label}))
    (tmp_path / "raw/labels.jsonl").write_text("\n".join(rows))
    code = (
        "import sys; sys.path.append(sys.argv[3])\n"
        "from oracle.sources import prepare_here\n"
        "prepare_here(sys.argv[1], sys.argv[2], split='train')\n"
    )
    folder = _extended("source of images", tmp_path)
    _run(folder, code, str(tmp_path / "raw"), str(tmp_path / "shards"), str(REPOSITORY / "tests"))
    split = open_split(f"{tmp_path}/shards/train-*.parquet")
    assert split.class_names == tuple(sorted(images))
    assert sorted(prepared_rows(tmp_path / "shards", "train")) == expected_rows({"train": images}, "train")


_TO_MEMORY = """
import sys
from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.launch import local
from dist_resnet.recipe import *
from dist_resnet.storage.uri import ADDRESSES

def train(storage):
    train, validation = write_demo(
        f"{storage}/images", size=32, num_classes=4, train_images=96, validation_images=40, seed=0
    )
    recipe = Recipe(
        model=Model(depth=8, num_classes=4),
        data=Data(train=train, validation=validation, dataset="cifar10"),
        augment=Augment(kind="pad", size=32),
        schedule=Schedule(learning_rate=0.05, kind="cosine"),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
        epochs=1,
        global_batch=32,
        ghost_batch=8,
    )
    tracking = Tracking(uri=f"sqlite:///{sys.argv[1]}/mlflow.db", register=False)
    execution = Execution(device="cpu", cpus_per_worker=1, storage=f"{storage}/runs", name="run", tracking=tracking)
    return local.run(local.prepare_run(recipe, execution, job="test"))["weights_sha256"]

assert "memory://path" in ADDRESSES, ADDRESSES
assert train("memory://bucket") == train(sys.argv[1])
"""


def test_images_and_runs_in_another_storage_train_to_the_same_weights(tmp_path: Path):
    _run(_extended("storage scheme", tmp_path), _TO_MEMORY, str(tmp_path / "local"))


def test_every_section_has_a_diff_and_a_test():
    assert set(_sections()) == {"shortcut", "optimizer", "storage scheme", "source of images"}
