"""BN over several ghost batches in one pass: convolutions see all their images, BN's statistics are per ghost batch.

The images come ghost batch after ghost batch, so each ghost batch is one slice of memory in both memory formats. BN
runs torch's own kernels on these slices, to the same bits as one ghost batch after another.
"""

from typing import Any

import torch
from torch import Tensor

_norm, _norm_backward = torch.ops.aten.native_batch_norm.out, torch.ops.aten.native_batch_norm_backward.out


def normalize_by_ghost_batch(model: torch.nn.Module, ghost_batch: int) -> None:
    """Makes a network's BN layers in training take statistics over every `ghost_batch` images by themselves.

    The running statistics follow the first ghost batch of each pass. The names of the weights do not change.
    """
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            # Not a forward of its own for each layer: units of one shape could not share a compilation.
            norm.__class__ = GhostBatchNorm2d
            assert isinstance(norm, GhostBatchNorm2d)
            norm.ghost_batch = ghost_batch


class GhostBatchNorm2d(torch.nn.BatchNorm2d):
    """BN whose statistics in training are those of every `ghost_batch` images by themselves."""

    ghost_batch: int

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) == self.ghost_batch:
            return super().forward(input)
        # Inductor fuses the formula with its neighbors, but not torch's own kernels.
        if torch.compiler.is_compiling():
            return _by_formula(input, self, self.ghost_batch)
        return _ByKernels.apply(input, self.weight, self.bias, self, self.ghost_batch)


class _ByKernels(torch.autograd.Function):
    """BN of each ghost batch by torch's kernels, which write into slices of one tensor."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: torch.nn.BatchNorm2d, ghost_batch: int
    ) -> Tensor:
        y = torch.empty_like(x)
        slices = list(zip(x.split(ghost_batch), y.split(ghost_batch), strict=True))
        means, deviations = weight.new_empty(2, len(slices), len(weight))
        running = norm.running_mean, norm.running_var
        for number, (each, out) in enumerate(slices):
            saved = {"save_mean": means[number], "save_invstd": deviations[number]}
            _norm(each, weight, bias, *running, True, norm.momentum, norm.eps, out=out, **saved)
            running = None, None
        ctx.save_for_backward(x, weight, means, deviations)
        ctx.eps, ctx.ghost_batch = norm.eps, ghost_batch
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, means, deviations = ctx.saved_tensors
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(means), torch.empty_like(means)
        slices = zip(*(tensor.split(ctx.ghost_batch) for tensor in (*gradients, x, dx)), strict=True)
        for number, (outer, each, out) in enumerate(slices):
            outs = {"out0": out, "out1": dweight[number], "out2": dbias[number]}
            saved = means[number], deviations[number]
            _norm_backward(outer, each, weight, None, None, *saved, True, ctx.eps, [True] * 3, **outs)
        return dx, dweight.sum(0), dbias.sum(0), None, None


def _by_formula(x: Tensor, norm: torch.nn.BatchNorm2d, ghost_batch: int) -> Tensor:
    """BN of each ghost batch by its formula, with autograd's backward pass."""
    by_ghost = x.view(-1, ghost_batch, *x.shape[1:]).to(norm.weight.dtype)
    var, mean = torch.var_mean(by_ghost, dim=(1, 3, 4), correction=0, keepdim=True)
    running: Any = norm.running_mean, norm.running_var
    momentum: Any = norm.momentum
    with torch.no_grad():
        count = x[:ghost_batch, 0].numel()
        for kept, now in zip(running, (mean[0], var[0] * (count / (count - 1))), strict=True):
            kept.lerp_(now.flatten(), momentum)
    weight, bias = (each[:, None, None] for each in (norm.weight, norm.bias))
    return ((by_ghost - mean) * (torch.rsqrt(var + norm.eps) * weight) + bias).to(x.dtype).view(x.shape)
