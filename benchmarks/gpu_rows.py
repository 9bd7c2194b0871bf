"""The rows of gpu_evidence.py, the most telling first, and what each is expected to give."""

import dataclasses
import importlib
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_setting import ROOT, Setting

from dist_resnet.wording import one_line

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement that gives one table."""

    act: Callable[[Setting], list[Line]]
    seconds: float
    """Estimate: the row begins only if so much time is left, and is cut off after four times as much."""
    continues: bool = False
    """Whether it takes all the time that the rows after it do not need, and at least half of what is left; it continues
    in the next call."""
    on_paper: str = ""
    """What was estimated for it without a GPU (H100)."""


def share(name: str, setting: Setting, later: float) -> Setting:
    """A row's setting, which ends earlier if the row continues in the next call and others need `later` seconds."""
    if not ROWS[name].continues or setting.toy:
        return setting
    return dataclasses.replace(setting, deadline=setting.deadline - min(later, setting.seconds_left / 2))


def limit(name: str, setting: Setting) -> float:
    """Seconds after which a row is cut off."""
    row = ROWS[name]
    return setting.seconds_left if row.continues or setting.toy else min(setting.seconds_left, 4 * row.seconds)


def measured(name: str, setting: Setting) -> dict[str, Any]:
    """The lines of a row's table; or `needs`, the module that is not installed here; or `error` in one line."""
    if setting.toy:
        torch.set_num_threads(1)  # a rehearsal shares the cores, where threads wait for one another
    try:
        return {"lines": ROWS[name].act(setting)}
    except ModuleNotFoundError as error:
        return {"needs": error.name}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {one_line(error)}"}


def tests(setting: Setting) -> list[Line]:
    """What the tests marked gpu give, and what fails or is skipped. A toy run only collects them."""
    importlib.import_module("pytest")
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    # Without pytest's plug-ins, which a bare machine lacks, and without errors for warnings of other versions.
    options = ["-o", "addopts=--import-mode=importlib", "-W", "default", "-q", "-rfEs", "--tb=line", "-m", "gpu"]
    options += [
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        *(["--collect-only"] if setting.toy else []),
    ]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr, file=sys.stderr)
    found = done.stdout.strip().splitlines()
    told = [line for line in found if re.match("FAILED|ERROR|SKIPPED", line)]
    return [{"what": "in all", "outcome": found[-1].strip("= ") if found else one_line(RuntimeError(done.stderr))}] + [
        {"what": line.partition(" - ")[0], "outcome": line.partition(" - ")[2][:200]} for line in told
    ]


def card(setting: Setting) -> list[Line]:
    """The card's limits."""
    import gpu_steps

    return gpu_steps.card(setting)


def steps(setting: Setting, depth: int, way: Any, ghosts: int = 1) -> list[Line]:
    """Images/s of a training step."""
    import gpu_steps

    return gpu_steps.steps(setting, depth, way, ghosts)


def together(setting: Setting, depth: int, way: Any) -> list[Line]:
    """Images/s of a training step with ghost batches one by one and together."""
    import gpu_steps

    return gpu_steps.together(setting, depth, way)


def cifar(setting: Setting, depth: int, trials: tuple[int, ...]) -> list[Line]:
    """Images/s of training on CIFAR-10 from the card's memory, several trials at once."""
    import cifar

    train, _ = setting.cifar_images()
    options = cifar.Options(
        data=train,
        depth=setting.sized(depth, 8),
        steps=setting.sized(200, 1),
        warm_up=setting.sized(8, 0),
        threads=setting.sized(2, 1),
        trials=setting.sized(trials, trials[:2]),
    )
    return [
        {"what": f"{name}, ResNet-{depth}", "trials at once": count, "images/s together": rate}
        | {"hours for 64k iterations each": cifar.ITERATIONS * cifar.BATCH * count / rate / 3600}
        for name in setting.sized((cifar.GRAPHED, cifar.SPLIT, cifar.OURS), (cifar.SPLIT,))
        for count, rate in cifar.together(name, "", options)
    ]


def images(setting: Setting, decode: Any) -> list[Line]:
    """Images/s of the input."""
    import gpu_limits

    return gpu_limits.images(setting, decode)


def memory(setting: Setting, depth: int) -> list[Line]:
    """The largest batch."""
    import gpu_limits

    return gpu_limits.memory(setting, depth)


def under_ray(setting: Setting) -> list[Line]:
    """Images/s of the loop under Ray Train and without Ray."""
    importlib.import_module("ray")
    from tempfile import TemporaryDirectory

    import step
    import subject

    from dist_resnet.launch import local
    from dist_resnet.launch.ray import train as ray_train
    from dist_resnet.recipe import Execution

    with TemporaryDirectory() as folder:
        depth, epochs = setting.sized((110, 40.0), (8, 1.0))
        recipe = subject.demo_recipe(f"{folder}/images", depth=depth, epochs=epochs)
        execution = Execution(cpus_per_worker=1, storage=f"{folder}/runs", precision=setting.sized("bf16", "fp32"))
        rates = {
            name: step.run_rate(engine, recipe, execution)[0]
            for name, engine in (("without Ray", local), ("under Ray Train", ray_train))
        }
    return [{"what": name, "images/s": rate} for name, rate in rates.items()]


def accuracy(setting: Setting) -> list[Line]:
    """The replication's cells."""
    import gpu_accuracy

    return gpu_accuracy.accuracy(setting)


PAPER = {
    "eager": "ResNet-200 430 to 600 images/s",
    "graphs": "ResNet-200 850 to 1,050 images/s, 1.7 to 2 times eager",
    "compiled": "ResNet-200 1,150 to 1,400 images/s",
    "compiled-graphs": "as compiled, without its launches",
}
ROWS = {
    "card": Row(act=card, seconds=10, on_paper="3.35 TB/s by the card's data sheet"),
    "tests": Row(act=tests, seconds=60, on_paper="all pass"),
    "step-152-graphs-together": Row(
        act=partial(together, depth=152, way="graphs"),
        seconds=60,
        on_paper="between ghost batches of 32 and one of 256",
    ),
    "cifar-20": Row(act=partial(cifar, depth=20, trials=(1, 2, 4, 8)), seconds=90, on_paper="graphs pay: launches"),
    "cifar-110": Row(act=partial(cifar, depth=110, trials=(1,)), seconds=40, on_paper="graphs pay: launches"),
    "accuracy": Row(act=accuracy, seconds=60, continues=True, on_paper="8.08 to 8.56 % (the replication's own errors)"),
    **{
        f"step-{depth}-{way}": Row(act=partial(steps, depth=depth, way=way), seconds=seconds, on_paper=PAPER[way])
        for depth, seconds in ((50, 90), (200, 180), (152, 300))
        for way in ("compiled-graphs", "compiled")
    },
    "step-152-compiled-together": Row(act=partial(together, depth=152, way="compiled"), seconds=400),
    "step-152-eager-together": Row(act=partial(together, depth=152, way="eager"), seconds=60),
    "memory-200": Row(
        act=partial(memory, depth=200), seconds=60, on_paper="119 MiB per image kept, 46 recomputed (counted)"
    ),
    "memory-1001": Row(
        act=partial(memory, depth=1001), seconds=60, on_paper="73 MiB per image kept, 25 recomputed (counted)"
    ),
    "input-gpu": Row(act=partial(images, decode="gpu"), seconds=40),
    "input-cpu": Row(act=partial(images, decode="cpu"), seconds=40, on_paper="1.8 CPU-ms an image of 112 KB"),
    "input-pillow": Row(act=partial(images, decode="pillow"), seconds=40),
    "ray": Row(act=under_ray, seconds=90, on_paper="within 1 %"),
    # Measured on an H200 already.
    **{
        f"step-{depth}-{way}": Row(act=partial(steps, depth=depth, way=way), seconds=30, on_paper=PAPER[way])
        for way in ("eager", "graphs")
        for depth in (152, 200, 50)
    },
    "step-152-eager-256": Row(act=partial(steps, depth=152, way="eager", ghosts=8), seconds=40),
}
