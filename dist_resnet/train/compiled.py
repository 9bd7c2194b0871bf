"""torch.compile layer by layer: residual units of the same shape share one compilation."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dist_resnet.recipe import Execution

# Kinds of layers in one network: stem, head, and per stage its first and its other units; times shapes of images.
_MOST_KINDS = 64


def compiled(layer: nn.Module, execution: Execution, device: torch.device) -> Callable[[torch.Tensor], Any]:
    """The layer, compiled at its first pass if the execution wants it; the layer given stays as it is."""
    if not execution.performance.compile:
        return layer
    # Past torch's own limit of 8, further kinds would silently not be compiled.
    torch.compiler.config.recompile_limit = max(_MOST_KINDS, torch.compiler.config.recompile_limit)
    # Dynamo asks every input for its gradient, and an input of a residual unit is no leaf.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    return torch.compile(layer, dynamic=False, options=options(execution, device))


def options(execution: Execution, device: torch.device) -> dict[str, Any]:
    """Inductor's options: it may time variants of a GPU's kernels, whose sums differ, unless runs are deterministic."""
    return {"deterministic": True} if execution.performance.deterministic and device.type == "cuda" else {}
