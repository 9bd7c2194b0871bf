"""CUDA graphs: a pass's work is recorded once and replayed, so that the GPU does not wait for launches.

For GPUs only. A replay runs the recorded kernels on the same addresses.
"""

from collections.abc import Callable, Iterator

import torch

from dist_resnet.recipe import Execution

# Forward and backward pass over some images: (images, labels, weights) -> the totals, float64 [3], once for each part
# of the network whose gradients are complete, from the last part to the first.
Pass = Callable[..., Iterator[torch.Tensor]]

# In the first passes, libraries choose algorithms and allocate workspaces, which must not be recorded.
_WARM_UPS = 3


def is_graphed(execution: Execution, device: torch.device) -> bool:
    """Whether passes are recorded."""
    performance = execution.performance
    # A recomputed unit may draw its mask again, for which it reads the generator's state: impossible in a recording.
    return performance.cuda_graphs and not performance.recompute and device.type == "cuda"


class GraphedPass:
    """A pass as CUDA graphs, one for each part of the network, recorded on construction.

    The caller must undo what a few passes change: they run before the recording. Every call needs images of the same
    shape and memory format. Gradients must keep their addresses. Dropout masks follow the seed set before each call.
    """

    def __init__(self, run: Pass, *inputs: torch.Tensor, beside: "GraphedPass | None" = None) -> None:
        """`beside`: another recording, which shares its memory; the two must not run at once."""
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        num_parts = _warm_up(run, *self._inputs)
        # One after another in one pool, as they are replayed: what one part leaves in memory, the next one finds.
        self._pool = beside._pool if beside else torch.cuda.graph_pool_handle()
        parts = run(*self._inputs)
        for _ in range(num_parts):
            graph = torch.cuda.CUDAGraph()
            # By default, another thread that allocates memory meanwhile, such as a loader's or NCCL's, would break it.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._totals = next(parts)
            self._graphs.append(graph)

    def __call__(self, *inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """Replays the pass on these inputs. The next call overwrites the tensor that each part yields."""
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor)
        for graph in self._graphs:
            graph.replay()
            yield self._totals


def _warm_up(run: Pass, *inputs: torch.Tensor) -> int:
    """Runs a pass on a separate stream, which recording requires. Returns the number of its parts."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        num_parts = [sum(1 for _ in run(*inputs)) for _ in range(_WARM_UPS)][-1]
    torch.cuda.current_stream().wait_stream(stream)
    return num_parts
