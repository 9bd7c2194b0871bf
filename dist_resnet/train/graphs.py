"""CUDA graphs: a ghost batch's work is recorded once and replayed, so that small networks do not wait for launches.

For GPUs only. A replay runs the recorded kernels on the same addresses.
"""

from collections.abc import Callable

import torch

# Forward and backward pass of one ghost batch: (images, labels, weights) -> float64 [3], adding to the gradients.
Pass = Callable[..., torch.Tensor]

# In the first passes, libraries choose algorithms and allocate workspaces, which must not be recorded.
_WARM_UPS = 3


class GraphedPass:
    """A pass over one ghost batch as a CUDA graph, recorded on construction; recording changes no numbers.

    Every call needs images of the same shape and memory format. Gradients must keep their addresses: zero them with
    `set_to_none=False`. Dropout masks follow the seed set before each call.
    """

    def __init__(self, run: Pass, *inputs: torch.Tensor) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # By default a loader's thread that allocates memory meanwhile would break the recording.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._totals = run(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Replays the pass on these inputs. The next call overwrites the tensor returned."""
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor)
        self._graph.replay()
        return self._totals


def warm_up(run: Pass, *inputs: torch.Tensor) -> None:
    """Runs a pass on a separate stream before recording; the caller must zero the gradients that it adds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
