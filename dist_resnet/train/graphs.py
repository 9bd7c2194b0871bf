"""CUDA graphs: the work of a ghost batch recorded once and replayed, so that small networks do not wait for launches.

Nothing here runs on the CPU. A replay runs the kernels that the recorded calls launched, on the same addresses.
"""

from collections.abc import Callable

import torch

# Forward and backward pass of one ghost batch: (images, labels, weights) -> float64 [3], adding to the gradients.
Pass = Callable[..., torch.Tensor]

# Libraries choose their algorithms and allocate their workspaces in the first passes, which must not be recorded.
_WARM_UPS = 3


class GraphedPass:
    """A pass over one ghost batch as a CUDA graph, recorded when it is made; recording changes no numbers.

    Every call brings images of the shape and memory format of the first. Gradients must keep their addresses: zero
    them with `set_to_none=False`. Masks drawn within follow the seed that is set ahead of each call.
    """

    def __init__(self, run: Pass, *inputs: torch.Tensor) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._totals = run(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Replays the pass on these inputs. The next call overwrites the tensor returned."""
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor)
        self._graph.replay()
        return self._totals


def warm_up(run: Pass, *inputs: torch.Tensor) -> None:
    """Runs a pass on a stream of its own, ahead of recording; what it adds to gradients is the caller's to undo."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
