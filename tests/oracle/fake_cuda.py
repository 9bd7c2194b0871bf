"""The project's own code on CUDA tensors without a GPU: torch's fake tensors over a CUDA runtime that does nothing.

A fake tensor has a shape, a type and a device, and no numbers, so code runs as it would on a GPU as far as devices,
shapes and waits are concerned. The backward pass asks the CUDA runtime and driver a few questions, which two small
libraries in C answer. They have to be loaded before torch, so that a trace runs in a process of its own:

    python -m oracle.fake_cuda NAME    # writes the operations that would have made the host wait, as JSON
"""

import collections
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_RUNTIME = r"""
#include <string.h>
typedef int Result;
static int device;
static long handles = 1;
Result cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Result cudaGetDevice(int *number) { *number = device; return 0; }
Result cudaSetDevice(int number) { device = number; return 0; }
Result cudaDriverGetVersion(int *version) { *version = 13020; return 0; }
Result cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }
Result cudaGetLastError(void) { return 0; }
Result cudaPeekAtLastError(void) { return 0; }
const char *cudaGetErrorString(Result error) { return "there is no GPU"; }
const char *cudaGetErrorName(Result error) { return "there is no GPU"; }
Result cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
Result cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    *stream = (void *)(handles++); return 0;
}
Result cudaStreamQuery(void *stream) { return 0; }
Result cudaStreamSynchronize(void *stream) { return 0; }
Result cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
Result cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Result cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)(handles++); return 0; }
Result cudaEventDestroy(void *event) { return 0; }
Result cudaEventRecord(void *event, void *stream) { return 0; }
Result cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { return 0; }
Result cudaEventQuery(void *event) { return 0; }
Result cudaEventSynchronize(void *event) { return 0; }
Result cudaThreadExchangeStreamCaptureMode(int *mode) { return 0; }
Result cudaDeviceCanAccessPeer(int *can, int one, int other) { *can = 0; return 0; }
Result cudaGetDeviceProperties(void *properties, int number) { memset(properties, 0, 1008); return 0; }
"""
_DRIVER = r"""
typedef int Result;
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
Result cuGetErrorString(Result error, const char **text) { *text = "there is no GPU"; return 0; }
"""

# Operations whose result the host reads, or whose size depends on numbers on the device.
_WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "equal.default",
    "unique",
    "repeat_interleave.T",
)


def reason_against() -> str | None:
    """Why no trace can run here, or None."""
    import torch

    if not sys.platform.startswith("linux"):
        return "fake CUDA needs Linux"
    if shutil.which("cc") is None:
        return "fake CUDA needs a C compiler (cc)"
    return None if torch.version.cuda else "fake CUDA needs a build of torch with CUDA"


def trace(name: str, folder: Path) -> list[str]:
    """What a trace found: a line for each kind of wait, with how often it came."""
    libraries = folder / "fake_cuda"
    libraries.mkdir()
    for file, source, soname in (("runtime.so", _RUNTIME, "runtime.so"), ("libcuda.so.1", _DRIVER, "libcuda.so.1")):
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-xc", "-", "-o", str(libraries / file)]
        subprocess.run(command, input=source, text=True, check=True, capture_output=True, timeout=60)
    environment = os.environ | {
        "LD_PRELOAD": str(libraries / "runtime.so"),
        "LD_LIBRARY_PATH": str(libraries),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "oracle.fake_cuda", name],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def fake_cuda() -> Iterator[Any]:
    """A block in which tensors are fake and, unless they say otherwise, on `cuda:0`. Yields the device."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Fake tensors of a device that is there would be made on it; autocast and the gradient scaler want it to be there.
    torch.cuda.is_available = lambda: False
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda._lazy_init = lambda: None
    with _changing_nothing(), FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda", 0):
        yield torch.device("cuda", 0)


@contextlib.contextmanager
def _changing_nothing() -> Iterator[None]:
    """torch has no fake kernels of the fused SGD, which changes numbers alone, and of a stream's note of a tensor."""
    import torch

    library = torch.library.Library("aten", "IMPL", "Meta")
    for name in ("_fused_sgd_", "_fused_sgd_.tensor_lr", "record_stream"):
        library.impl(name, lambda *_, **__: None)
    yield


class Waits:
    """Counts operations that make the host wait for the device, and copies that are not asynchronous."""

    def __init__(self) -> None:
        self.found: collections.Counter[str] = collections.Counter()
        self.operations = 0
        """Operations that are no views."""
        self._pinned: set[int] = set()

    def lines(self) -> list[str]:
        """A line for each kind of wait."""
        return [f"{count} x {what}" for what, count in sorted(self.found.items())]

    def pin(self, tensor: Any) -> Any:
        """The same tensor, taken as one in pinned memory from here on."""
        self._pinned.add(tensor.untyped_storage()._cdata)
        return tensor

    @property
    def pin_memory(self) -> Callable[[Any], Any]:
        """What stands in for the method of tensors."""
        return lambda tensor: self.pin(tensor)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The block that is watched."""
        from torch.utils._python_dispatch import TorchDispatchMode

        add, pin = self._add, self.pin

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                add(function, args, kwargs or {})
                result = function(*args, **(kwargs or {}))
                return pin(result) if (kwargs or {}).get("pin_memory") else result

        with Watch():
            yield

    def _add(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        import torch

        name = str(function)
        views = any(result.alias_info and not result.alias_info.is_write for result in function._schema.returns)
        self.operations += name.startswith("aten") and not views
        tensors = [one for one in args if isinstance(one, torch.Tensor)]
        if any(one.is_cuda for one in tensors) and any(word in name for word in _WAITING):
            self.found[name] += 1
        if name == "aten.index.Tensor" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.found["aten.index.Tensor by a mask"] += 1
        if name == "aten._to_copy.default" and kwargs.get("device") is not None:
            device, pinned = torch.device(kwargs["device"]).type, bool(kwargs.get("pin_memory"))
            self._add_copy(tensors[0], device, non_blocking=kwargs.get("non_blocking", False), pinned=pinned)
        if name == "aten.copy_.default":
            target, source, *flags = (*args, kwargs.get("non_blocking", False))
            self._add_copy(source, target.device.type, non_blocking=flags[0], pinned=self._is_pinned(target))

    def _is_pinned(self, tensor: Any) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned

    def _add_copy(self, source: Any, target: str, *, non_blocking: bool, pinned: bool) -> None:
        """`pinned`: whether the copy is in pinned memory, if it is on the CPU."""
        if {source.device.type, target} != {"cpu", "cuda"}:
            return
        pageable = not (self._is_pinned(source) if target == "cuda" else pinned)
        # A copy from or to pageable memory waits, whatever was asked for.
        if pageable or not non_blocking:
            what = "pageable" if pageable else "blocking"
            self.found[f"{what} copy of {list(source.shape)} from {source.device.type} to {target}"] += 1


def _network(model: Any, *, channels_last: bool) -> Any:
    """A network of fake tensors. Its parameters are put in place one by one, for fake ones cannot be swapped."""
    import torch

    from dist_resnet.model.resnet import ResNet

    network = ResNet(model)
    for module in network.modules() if channels_last else ():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 4:
                last = parameter.detach().contiguous(memory_format=torch.channels_last)
                module.register_parameter(name, torch.nn.Parameter(last))
    return network


def _settings(precision: str, ghosts_per_pass: int = 1) -> tuple[Any, Any]:
    from dist_resnet.recipe import (
        Augment,
        Data,
        Evaluation,
        Execution,
        Model,
        Optimizer,
        Performance,
        Recipe,
        Schedule,
    )

    recipe = Recipe(
        model=Model(depth=20, num_classes=10),
        data=Data(train="train", validation="validation", dataset="cifar10"),
        augment=Augment(kind="pad", size=32, padding=4),
        optimizer=Optimizer(),
        schedule=Schedule(kind="step", learning_rate=0.1, drops=(0.5,)),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
        epochs=1,
        global_batch=32,
        ghost_batch=8,
    )
    # A recording needs a GPU.
    performance = Performance(ghosts_per_pass=ghosts_per_pass, cuda_graphs=False)
    return recipe, Execution(device="gpu", precision=precision, performance=performance)  # type: ignore


def _state(recipe: Any, execution: Any, device: Any) -> Any:
    from dist_resnet.train.optimizer import build_optimizer
    from dist_resnet.train.precision import loss_scaler
    from dist_resnet.train.state import TrainState

    model = _network(recipe.model, channels_last=execution.performance.channels_last)
    optimizer = build_optimizer(recipe.optimizer, model)
    return TrainState(model=model, optimizer=optimizer, scaler=loss_scaler(execution, device))


def _batches(recipe: Any, worker: Any = None) -> list[Any]:
    import numpy as np
    import torch

    from dist_resnet.data.input.batch import Batch

    size, num = recipe.augment.size, recipe.ghost_batch
    return [
        Batch(
            images=torch.zeros(num, 3, size, size).to(memory_format=torch.channels_last),
            labels=torch.zeros(num, dtype=torch.int64),
            indices=np.arange(num),
            ghost=ghost,
            weights=torch.ones(num),
        )
        for ghost in (range(recipe.num_ghost_batches) if worker is None else worker.share(recipe.num_ghost_batches))
    ]


def _steps(precision: str, workers: int = 1, ghosts_per_pass: int = 1) -> list[str]:
    """The third and the fourth step, which find everything that earlier ones made. Other workers answer nothing."""
    from dist_resnet.train import distributed
    from dist_resnet.train.step import TrainStep
    from dist_resnet.worker import Worker

    recipe, execution = _settings(precision, ghosts_per_pass)
    waits = Waits()
    if workers > 1:
        distributed._PART_BYTES = 1 << 16
    with fake_cuda() as device, _alone_among(workers):
        worker = Worker(rank=0, world_size=workers, device=device)
        step = TrainStep(recipe, execution, worker, _state(recipe, execution, device))
        for _ in range(2):
            step(_batches(recipe, worker), 0.1)
        steps = iter([_batches(recipe, worker), _batches(recipe, worker)])
        with waits.watching():
            for batches in step.clock.waiting(steps):
                totals = step(batches, 0.1)
        assert totals.device.type == "cuda"
        # Of each step the wait's beginning and end and the step's end, with others also the sums'; and the last wait.
        marks = 2 * (3 if workers == 1 else 5) + 1
        assert [type(mark).__name__ for _, mark in step.clock._marks] == marks * ["Event"]
    return waits.lines()


@contextlib.contextmanager
def _alone_among(workers: int) -> Iterator[None]:
    """A process group of torch's own backend for tests, in which nothing is sent."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if workers > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=workers)
    yield
    if workers > 1:
        dist.destroy_process_group()


def _checkpoint() -> list[str]:
    """The copy of a network's weights, BN statistics and momentum."""
    import torch

    from dist_resnet.train.checkpoint import Snapshot
    from dist_resnet.train.step import TrainStep
    from dist_resnet.worker import Worker

    recipe, execution = _settings("bf16")
    waits = Waits()
    with fake_cuda() as device:
        worker = Worker(rank=0, world_size=1, device=device)
        state = _state(recipe, execution, device)
        TrainStep(recipe, execution, worker, state)(_batches(recipe), 0.1)
        with waits.watching():
            snapshot = Snapshot.of(state)
        snapshot.wait()
        live = state.live_weights() | state.live_slots()
        assert len(live) == len(state.live_weights()) + len(list(state.model.parameters()))
        for name, tensor in (snapshot.weights | snapshot.slots).items():
            assert tensor.device.type == "cpu", name
            assert tensor.shape == live[name].shape, name
            assert tensor.dtype == live[name].dtype, name
            assert tensor.is_contiguous(), name
        assert any(not tensor.is_contiguous() for tensor in live.values())
        assert isinstance(tensor, torch._subclasses.FakeTensor)
    return waits.lines()


def _evaluation() -> list[str]:
    """An evaluation of three batches, without what is read at its end."""
    import torch

    from dist_resnet.train.evaluate import Evaluator
    from dist_resnet.worker import Worker

    recipe, execution = _settings("bf16")
    waits = Waits()

    class Images:
        num_images = 24

        def center_crops(self, crop: int, shorter_side: int) -> Iterator[Any]:
            batches = _batches(recipe)[:3]
            with waits.watching():
                yield from batches

    with fake_cuda() as device:
        worker = Worker(rank=0, world_size=1, device=device)
        model = _state(recipe, execution, device).model
        evaluator = Evaluator(model=model, images=Images(), worker=worker)  # type: ignore
        confusion = torch.zeros(10, 10, dtype=torch.int64)
        with contextlib.suppress(torch._subclasses.fake_tensor.DataDependentOutputException):
            evaluator.at_crop(32, 32, confusion)
    return waits.lines()


def _loader() -> list[str]:
    """The second ghost batch with every change of colors, from pixels in pinned memory to the network's input."""
    import numpy as np
    import torch

    from dist_resnet.data.input.augment import Augmentation
    from dist_resnet.data.input.batch import BatchMaker
    from dist_resnet.data.input.normalize import on_device
    from dist_resnet.recipe import Augment

    recipe, _ = _settings("bf16")
    waits, indices = Waits(), np.arange(8)
    torch.Tensor.pin_memory = waits.pin_memory
    augment = Augment(kind="inception", size=32, color="full")
    with fake_cuda() as device:
        maker = BatchMaker(recipe, None, device, channels_last=True)  # type: ignore
        for _ in range(2):
            waits.found.clear()
            with waits.watching():
                pixels = waits.pin(torch.zeros(8, 32, 32, 3, dtype=torch.uint8, device="cpu"))
                images = maker.normalized(pixels.to(device, non_blocking=True), indices, Augmentation(augment, 0, 0))
                batch = maker.batch(images, on_device(np.zeros(8, np.int64), device), indices, 0, {})
        assert {each.device.type for each in (batch.images, batch.labels, batch.weights)} == {"cuda"}
    return waits.lines()


def _resident() -> list[str]:
    """An epoch of images that are on the device, and how many operations a ghost batch takes on average."""
    import numpy as np
    import torch

    from dist_resnet.data.input.decoders import InputOptions
    from dist_resnet.data.input.resident import ResidentImages

    recipe, execution = _settings("bf16")
    waits, num = Waits(), 512
    torch.Tensor.pin_memory = waits.pin_memory
    with fake_cuda() as device:
        reader = SimpleNamespace(split=SimpleNamespace(num_images=num))
        images = ResidentImages(recipe, reader, device, InputOptions.of(execution))  # type: ignore
        images._loaded = torch.zeros(num, 32, 32, 3, dtype=torch.uint8), torch.zeros(num, dtype=torch.int64), {}
        with waits.watching():
            batches = list(images.ghost_batches(0, 0, range(recipe.num_ghost_batches)))
        for batch in batches:
            assert {each.device.type for each in (batch.images, batch.labels, batch.weights)} == {"cuda"}
            assert batch.images.shape == (recipe.ghost_batch, 3, 32, 32)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert sum(len(batch.images) for batch in batches) == num
    assert all(np.issubdtype(batch.indices.dtype, np.integer) for batch in batches)
    operations = waits.operations / len(batches)
    return waits.lines() + ([f"{operations:.1f} operations for a ghost batch"] if operations > 6 else [])


_TRACES: dict[str, Callable[[], list[str]]] = {
    **{f"steps {precision}": (lambda precision=precision: _steps(precision)) for precision in ("fp32", "bf16", "fp16")},
    "steps of two workers": lambda: _steps("bf16", workers=2),
    # Four ghost batches of a step, so that the last pass has fewer.
    "steps bf16 together": lambda: _steps("bf16", ghosts_per_pass=3),
    "checkpoint": _checkpoint,
    "evaluation": _evaluation,
    "loader": _loader,
    "resident": _resident,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(_TRACES[sys.argv[1]]()) + "\n")
