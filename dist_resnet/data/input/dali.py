"""DALI as a decoder without random draws: it decodes exactly the given windows, on the CPU or the GPU.

On the GPU, DALI also resizes them, with an antialiased triangle filter. On the CPU, `resize` does so at a fifth of the
cost (benchmarks/loader.py).
"""

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.backend import TensorListCPU, TensorListGPU
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray

from dist_resnet.data.input.batch import Request, resize

# Batches that a pipeline works on ahead of the current one.
_AHEAD = 2
# Two pipelines alternate on the CPU: at the end of a batch, a core would otherwise be idle until the others are done.
_LANES = 2


class _Lane:
    """A DALI pipeline, the requests waiting for it, and those in flight, each with its inputs."""

    def __init__(self, build: Callable[..., Pipeline], next_inputs: Callable[["_Lane"], tuple]) -> None:
        self.waiting: deque[Request] = deque()
        self.in_flight: deque[tuple[Request, tuple]] = deque()
        self._build = functools.partial(build, source=lambda: next_inputs(self))
        self.pipeline = self._build()

    def rewind(self) -> None:
        """Makes the pipeline ready for other requests, of which there must be none yet, and forgets every one."""
        try:
            # A pipeline can start again only once it has reached its end.
            while True:
                self.pipeline.run()
        except StopIteration:
            self.pipeline.reset()
        except RuntimeError:  # a damaged image among those that nobody wants any more
            self.pipeline = self._build()
        self.in_flight.clear()

    def start_again(self, requests: list[Request]) -> None:
        """Decodes these instead of the ones in flight, in a new pipeline: one that raised may be unusable."""
        # Takes 0.1 s. The old pipeline is freed before the bytes that it may still be reading.
        self.pipeline = self._build()
        self.in_flight.clear()
        self.waiting.extendleft(reversed(requests))


class DaliDecoder:
    """Decodes requests in order, several ahead of the current one."""

    def __init__(self, *, max_batch: int, num_threads: int, device: torch.device, alike: bool = False) -> None:
        """`device`: where the pixels are stored; a GPU also decodes JPEGs. `alike`: see `define`."""
        self._device = device
        self._requests: Iterator[Request] = iter(())
        self._turns: Iterator[_Lane] = iter(())
        build = functools.partial(_build, max_batch, num_threads, device, _AHEAD, alike=alike)
        self._lanes = [_Lane(build, self._next_inputs) for _ in range(_LANES if device.type == "cpu" else 1)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._num_threads = num_threads

    def decode(self, requests: Generator[Request]) -> Generator[tuple[Request, torch.Tensor]]:
        """Yields each request with its pixels, uint8 [N, size, size, 3].

        On a GPU they are complete, but filled on another stream than the caller's. An image that cannot be decoded is
        replaced with a neutral one and listed in the yielded request's `damaged`. A decoder serves one call after
        another, also after one that was closed before its end, but none after one that raised. Raises RuntimeError if
        DALI or the GPU fails otherwise than by an image.
        """
        self._requests, self._turns = requests, itertools.cycle(self._lanes)
        with self._rewinding(requests), ThreadPoolExecutor(self._num_threads, "dist_resnet-resize") as pool:
            for lane in itertools.cycle(self._lanes):
                output = self._run(lane)
                if output is None:
                    break
                # DALI reads a request's bytes without a copy, so they are kept until its output has arrived.
                request = lane.in_flight[0][0]
                pixels = self._resize(output, request, pool) if self._stream is None else self._take(output)
                lane.in_flight.popleft()
                yield request, pixels

    @contextlib.contextmanager
    def _rewinding(self, requests: Generator[Request]) -> Generator[None]:
        """After the block, the requests are closed and the lanes ready for others, unless it raised an exception."""
        try:
            yield
        except Exception:
            requests.close()
            raise
        except GeneratorExit:
            self._rewind(requests)
            raise
        self._rewind(requests)

    def _rewind(self, requests: Generator[Request]) -> None:
        requests.close()
        for lane in self._lanes:
            lane.waiting.clear()
        for lane in self._lanes:
            lane.rewind()

    def _run(self, lane: _Lane) -> TensorListCPU | TensorListGPU | None:
        """The output for the oldest request of a lane, or None after the last one."""
        while True:
            try:
                (output,) = lane.pipeline.run()
            except StopIteration:
                return None
            except RuntimeError as error:
                lane.start_again(self._repaired(lane, error))
            else:
                return output

    def _next_inputs(self, lane: _Lane) -> tuple:
        """The inputs of a lane's next request; the lanes take turns, in whatever order they call this."""
        while not lane.waiting:
            request = next(self._requests)
            next(self._turns).waiting.append(request)
        request = lane.waiting.popleft()
        inputs = self._inputs(request)
        lane.in_flight.append((request, inputs))
        return inputs

    def _inputs(self, request: Request) -> tuple:
        windows = request.windows.astype(np.int32)
        inputs = (request.images, np.ascontiguousarray(windows[:, :2]), np.ascontiguousarray(windows[:, 2:]))
        if self._stream is not None:
            sizes = np.full((len(windows), 2), request.size, np.float32)
            sizes[request.flips, 1] *= -1  # a negative extent mirrors for free
            inputs += (sizes,)
        return inputs

    def _take(self, output: TensorListGPU) -> torch.Tensor:
        """A copy of DALI's pixels."""
        assert self._stream is not None
        tensor = output.as_tensor()
        # Allocated on the stream that fills it; otherwise the caching allocator could hand out memory still in use.
        with torch.cuda.stream(self._stream):
            pixels = torch.empty(tensor.shape(), dtype=torch.uint8, device=self._device)
            feed_ndarray(tensor, pixels, cuda_stream=self._stream)
        self._stream.synchronize()
        return pixels

    def _resize(self, output: TensorListCPU, request: Request, pool: ThreadPoolExecutor) -> torch.Tensor:
        """DALI's windows, resized and mirrored."""
        windows = [torch.from_numpy(np.asarray(output[number])) for number in range(len(request.images))]
        return resize(windows, request, pool, self._num_threads)

    def _repaired(self, lane: _Lane, error: RuntimeError) -> list[Request]:
        """The requests that a lane has in flight, with undecodable images replaced.

        Raises RuntimeError if every image can be decoded alone, and if the GPU can compute nothing any more.
        """
        check_device(self._device)
        requests = [request.without(self._undecodable(request)) for request, _ in lane.in_flight]
        if all(new is old for new, (old, _) in zip(requests, lane.in_flight, strict=True)):
            raise RuntimeError(f"DALI stopped ({_reason(error)})") from error
        return requests

    def _undecodable(self, request: Request) -> dict[int, str]:
        """The positions of a request's undecodable images, each with DALI's reason."""
        found = {}
        inputs = self._inputs(request)
        images = iter([tuple([part[position]] for part in inputs) for position in range(len(request.images))])
        build = functools.partial(_build, 1, 1, self._device, 1, source=lambda: next(images), alike=True)
        pipeline = build()
        for position in range(len(request.images)):
            try:
                pipeline.run()
            except RuntimeError as error:
                found[position] = _reason(error)
                pipeline = build()
        return found


def check_device(device: torch.device) -> None:
    """Raises RuntimeError if the GPU is in an error that stays until its process ends; every image would seem damaged.

    Does nothing on the CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _build(max_batch: int, num_threads: int, device: torch.device, ahead: int, source, *, alike: bool) -> Pipeline:
    number = (device.index or 0) if device.type == "cuda" else None
    pipeline = Pipeline(batch_size=max_batch, num_threads=num_threads, device_id=number, prefetch_queue_depth=ahead)
    define(pipeline, source, gpu=device.type == "cuda", alike=alike)
    pipeline.build()
    return pipeline


def define(pipeline: Pipeline, source: Callable[[], tuple], *, gpu: bool, alike: bool) -> None:
    """Defines how a pipeline decodes. `alike`: an image's pixels do not depend on its place in the batch.

    Otherwise a GPU's JPEG hardware decodes the first images of a batch and its kernels the others, which is faster; the
    pixels may differ in the lowest bits. A ghost batch is the same on any number of workers, a batch of an evaluation
    is not.
    """
    kinds = [types.UINT8, types.INT32, types.INT32, types.FLOAT][: 4 if gpu else 3]
    # No size of images is given for its buffers: they grow in the first batches alone.
    options = {"hw_decoder_load": 0.0} if gpu and alike else {}
    with pipeline:
        encoded, corners, extents, *sizes = fn.external_source(
            source=source, num_outputs=len(kinds), no_copy=True, dtype=kinds, ndim=1
        )
        pixels = fn.decoders.image_slice(
            encoded,
            corners,
            extents,
            axes=(0, 1),
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # windows are in stored pixels
            jpeg_fancy_upsampling=True,
            **options,
        )
        if gpu:
            pixels = fn.resize(pixels, size=sizes[0], interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(pixels)


def _reason(error: BaseException) -> str:
    """The line of one of DALI's long messages that has the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "ailed" in line or "nvalid" in line or "nvImageCodec" in line]
    return (reasons or lines or ["no reason given"])[0][:200]
