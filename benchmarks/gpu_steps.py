"""Rows of gpu_evidence.py: steps of the ImageNet networks next to those of torchvision and timm, and the card's limits.

The share of the copy bandwidth is that of a step without fusion: the bytes that its operations read and write, counted
once each, over the bytes that the card copies in the time of the step. A fused step can exceed 100 %.
"""

import functools
import gc
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import harness
import step
import subject
import torch
import torch.nn.functional as F
from gpu_setting import Setting
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dist_resnet.model import build_model
from dist_resnet.recipe import Execution, Model
from dist_resnet.train.precision import autocast

Way = Literal["eager", "graphs", "compiled", "compiled-graphs"]
Line = dict[str, Any]
PEERS, TOY_PEERS = ("torchvision.resnet152", "timm.resnetv2_152"), ("torchvision.resnet18", "timm.resnetv2_50")
# Bytes that a step moves for each weight, whatever the batch: the bf16 copy is made (4 + 2), read twice (2 + 2), its
# gradient written (2) and made fp32 (2 + 4); SGD with momentum reads three fp32 numbers and writes two.
_PASS_BYTES, _OPTIMIZER_BYTES = 18, 5 * 4


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A network whose step is measured."""

    name: str
    model: Callable[[], torch.nn.Module]
    step: Callable[[], Callable[[], object]]


def card(setting: Setting) -> list[Line]:
    """The card's copy bandwidth and the speed of its matrix products."""
    side = setting.sized(8192, 256)
    a, b = (torch.randn(side, side, device=subject.DEVICE, dtype=torch.bfloat16) for _ in range(2))
    seconds = _seconds(lambda: a @ b, times=setting.sized(20, 2))
    return [
        {"what": "copy, bytes read and written", "figure": copy_bandwidth(toy=setting.toy) / 1e12, "unit": "TB/s"},
        {"what": f"bf16 product of {side} x {side}", "figure": 2 * side**3 / seconds / 1e12, "unit": "TFLOP/s"},
    ]


def steps(setting: Setting, depth: int, way: Way, ghosts: int = 1) -> list[Line]:
    """Images/s of a step of `ghosts` ghost batches of 32 and, at 152 layers, of peers with as many images."""
    options, batch = _options(setting, depth, way), setting.sized(32, 2)
    return _measured(setting, options, _contestants(setting, options, depth, batch, ghosts), batch * ghosts)


def together(setting: Setting, depth: int, way: Way) -> list[Line]:
    """Images/s of a step of 8 ghost batches of 32, one by one and several in a pass."""
    options, batch, ghosts = _options(setting, depth, way), setting.sized(32, 2), setting.sized(8, 3)

    def own() -> torch.nn.Module:
        return build_model(Model(depth=options.depth, num_classes=step.CLASSES))

    contestants = [
        Contestant(
            name=f"dist_resnet {options.depth}, {ghosts} ghost batches of {batch}, {count} in a pass",
            model=own,
            step=functools.partial(step.loop_step, options, batch, ghosts, count),
        )
        for count in setting.sized((1, 2, 4, 8), (1, 2))
    ]
    return _measured(setting, options, contestants, batch * ghosts)


def _options(setting: Setting, depth: int, way: Way) -> step.Bare:
    return step.Bare(
        depth=setting.sized(depth, 8),
        size=setting.sized(224, 32),
        precision=setting.sized("bf16", "fp32"),  # pyrefly: ignore
        compile=way.startswith("compiled"),
        cuda_graphs=way.endswith("graphs"),
        rounds=setting.sized(3, 1),
        steps=setting.sized(20, 1),
    )


def _measured(setting: Setting, options: step.Bare, contestants: Iterable[Contestant], images: int) -> list[Line]:
    """A line for each contestant, whose steps have so many images."""
    if setting.toy:
        torch.compiler.set_stance("force_eager")  # compilation takes minutes on a CPU
    lines, turns = _warmed_up(contestants, options, images)
    for name, rounds in harness.interleaved(turns, options.rounds).items():
        rate = statistics.median(rate for (rate,) in rounds)
        lines[name] |= {"images/s": rate, "of copy bandwidth, %": 100 * rate * lines[name]["MB per image"] * 1e6}
        lines[name]["of copy bandwidth, %"] /= copy_bandwidth(toy=setting.toy)
    return list(lines.values())


def _contestants(setting: Setting, options: step.Bare, depth: int, batch: int, ghosts: int) -> Iterator[Contestant]:
    def own() -> torch.nn.Module:
        return build_model(Model(depth=options.depth, num_classes=step.CLASSES))

    splits = {(batch, ghosts), (batch * ghosts, 1)}
    for size, count in sorted(splits):
        name = f"dist_resnet {options.depth}, {count} ghost batch{'es' if count > 1 else ''} of {size}"
        yield Contestant(name=name, model=own, step=functools.partial(step.loop_step, options, size, count))
    for name in setting.sized(PEERS, TOY_PEERS) if depth == 152 else ():
        model = functools.partial(step.peer, name)
        bare = functools.partial(_bare_step, model, options, batch * ghosts)
        yield Contestant(name=f"{name}, {batch * ghosts} images", model=model, step=bare)


def _bare_step(model: Callable[[], torch.nn.Module], options: step.Bare, batch: int) -> Callable[[], object]:
    return step.bare_step(model(), options, batch)


def _warmed_up(
    contestants: Iterable[Contestant], options: step.Bare, images: int
) -> tuple[dict[str, Line], dict[str, Callable[[], tuple[float]]]]:
    """A line for each contestant, and what measures a round of it; one that cannot be built has the reason."""
    lines: dict[str, Line] = {}
    turns: dict[str, Callable[[], tuple[float]]] = {}
    for each in contestants:
        try:
            moved = bytes_per_image(each.model(), options, images)
            act, peak = _with_peak(each)
        except ModuleNotFoundError as error:
            lines[each.name] = {"what": each.name, "note": f"needs {error.name}"}
            continue
        lines[each.name] = {"what": each.name, "images/s": None, "peak GiB": peak, "MB per image": moved / 1e6}
        turns[each.name] = functools.partial(step.steps_rate, act, images, options.steps)
    return lines, turns


def _with_peak(contestant: Contestant) -> tuple[Callable[[], object], float | None]:
    """A step that has been run three times, and the GiB that it took at most."""
    empty()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    act = contestant.step()
    for _ in range(3):
        act()
    subject.wait()
    return act, (torch.cuda.max_memory_allocated() - before) / 2**30 if torch.cuda.is_available() else None


def empty() -> None:
    """Frees what is no longer used on the card, and starts the count of the most used memory there."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write, each once for each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation; views and allocations move nothing."""
        result = func(*args, **(kwargs or {}))
        is_view = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and "empty" not in func.__name__:
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        return result


def bytes_per_image(model: torch.nn.Module, options: step.Bare, images: int) -> float:
    """Bytes that a step without fusion moves for each image, if a step has so many images."""
    device, few = subject.DEVICE, min(images, 8)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    pixels, labels = subject.random_images(few, options.size, step.CLASSES, device)
    with Traffic() as traffic:
        with autocast(Execution(precision=options.precision), device):
            loss = F.cross_entropy(model(pixels).float(), labels)
        loss.backward()
    weights = sum(parameter.numel() for parameter in model.parameters())
    return (traffic.bytes - _PASS_BYTES * weights) / few + (_PASS_BYTES + _OPTIMIZER_BYTES) * weights / images


@functools.cache
def copy_bandwidth(*, toy: bool) -> float:
    """Bytes read and written in a second by a copy on the card."""
    source = torch.empty(2**22 if toy else 2**31, dtype=torch.uint8, device=subject.DEVICE).zero_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), times=2 if toy else 20)


def _seconds(act: Callable[[], object], *, times: int) -> float:
    """Seconds of a call, the mean of several after two."""
    for _ in range(2):
        act()
    return step.timed(lambda: [act() for _ in range(times)], subject.wait) / times
