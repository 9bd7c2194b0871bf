"""One optimizer step over this worker's ghost batches."""

import contextlib
import functools
from collections.abc import Generator, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from dist_resnet.data.input.batch import Batch
from dist_resnet.model.shortcuts import SHORTCUTS
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train.compiled import compiled
from dist_resnet.train.distributed import Gradients, in_parts
from dist_resnet.train.freeze import train_mode
from dist_resnet.train.ghost_norm import normalize_by_ghost_batch
from dist_resnet.train.graphs import GraphedPass, is_graphed
from dist_resnet.train.optimizer import set_learning_rate
from dist_resnet.train.passes import joined, passes
from dist_resnet.train.precision import autocast, shared_casts
from dist_resnet.train.recompute import held_statistics
from dist_resnet.train.state import TrainState
from dist_resnet.train.statistics import RunningStatistics
from dist_resnet.train.timing import StepClock
from dist_resnet.worker import Worker


class TrainStep:
    """Takes optimizer steps: BN per ghost batch, gradients summed over the workers once per step.

    The loss is the mean over the global batch, so a step does not depend on the number of workers, except for the order
    of floating-point sums. BN's running statistics follow ghost batch 0, which is rank 0's.
    """

    def __init__(self, recipe: Recipe, execution: Execution, worker: Worker, state: TrainState) -> None:
        self._recipe, self._execution, self._worker, self._state = recipe, execution, worker, state
        self._passes = passes(recipe, execution, worker)
        if len(self._passes[0]) > 1:
            normalize_by_ghost_batch(state.model, recipe.ghost_batch)
        self._norms = [module for module in state.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        self._is_graphed = is_graphed(execution, worker.device)
        parts = in_parts(state.model.layers, worker)
        # Only then do gradients need addresses of their own; to accumulate into zeros costs a launch for each weight.
        self._gradients = Gradients(parts, worker) if worker.world_size > 1 or self._is_graphed else None
        self._parts = [[compiled(layer, execution, worker.device) for layer in part] for part in parts]
        self.clock = StepClock(worker.device)
        """The parts of each step's time."""
        self.statistics = RunningStatistics(state.model)
        """BN's running statistics: those of ghost batch 0 on rank 0, of no meaning on other ranks."""
        self._recorded: dict[torch.Size, GraphedPass] = {}

    def __call__(self, batches: Iterable[Batch], learning_rate: float) -> torch.Tensor:
        """Takes the step numbered `state.step` and counts it.

        Takes this worker's ghost batches, in rising order, from `batches`, those of a pass when the pass begins.
        Returns this worker's float64 [3] on the device: the sum of losses, the number of top-1 errors and the number of
        images, without images of weight 0. Raises ValueError if `batches` has other ghost batches.
        """
        state, batches = self._state, iter(batches)
        train_mode(state.model, self._recipe.initial.freeze)
        set_learning_rate(state.optimizer, learning_rate)
        totals = torch.zeros(3, dtype=torch.float64, device=self._worker.device)
        # A recording makes its own casts, as the weights are at every replay.
        casts = contextlib.nullcontext() if self._is_graphed else shared_casts(self._worker.device)
        with self.statistics.uncounted(), casts:
            for ghosts in self._passes:
                totals += self._run(ghosts[0], *joined(batches, ghosts), is_last=ghosts == self._passes[-1])
                if ghosts[0] == 0:
                    self.statistics.keep()
        if self._worker.rank == 0:
            self.statistics.put_back()
            self.statistics.count()
        self._update()
        state.step += 1
        self.clock.step_done()
        return totals

    def _seed_masks(self, ghost: int) -> None:
        if SHORTCUTS[self._recipe.model.shortcut].draws_masks:
            torch.manual_seed(_dropout_seed(self._recipe.seed, self._state.step, ghost))

    def _run(self, ghost: int, *inputs: torch.Tensor, is_last: bool) -> torch.Tensor:
        """Adds a pass's gradients and returns its totals; after the last one, all gradients are being summed.

        `ghost`: the first ghost batch of the pass. `inputs`: images, labels and weights.
        """
        run = self._recording(*inputs) if self._is_graphed else self._forward_backward
        self._seed_masks(ghost)  # after a recording, whose passes draw masks, too
        parts = run(*inputs)
        totals = torch.empty(0)
        for number in reversed(range(len(self._parts))):
            totals = next(parts)
            if is_last and self._gradients:
                self._gradients.reduce(number)
        return totals

    def _update(self) -> None:
        """Updates the weights by the gradients, which then are zero."""
        state = self._state
        if self._gradients:
            self.clock.gradients_done()
            self._gradients.wait()
            self.clock.gradients_summed()
        # Each worker finds an overflow of fp16 in the sums, so that all of them skip the same step.
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if self._gradients:
            self._gradients.zero()
        else:
            state.optimizer.zero_grad()

    def _forward_backward(
        self, images: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> Generator[torch.Tensor]:
        """Yields the totals once for each part of the network, the last part first, when its gradients are complete.

        Backward passes of the parts one after another give the bits of one through the whole network.
        """
        x, outputs, gradients = images, [], []
        with autocast(self._execution, self._worker.device):
            for part in self._parts:
                if outputs:
                    x = outputs[-1].detach().requires_grad_()
                    # As it comes: `x.grad` has the memory format of x, in which other kernels would round otherwise.
                    x.register_hook(gradients.append)
                outputs.append(functools.reduce(lambda x, layer: layer(x), part, x))
            logits = outputs.pop()
            losses = F.cross_entropy(
                logits.float(), labels, label_smoothing=self._recipe.label_smoothing, reduction="none"
            )
        total = (losses * weights).sum()
        errors = ((logits.argmax(dim=1) != labels) * weights).sum()
        totals = torch.stack((total.detach().double(), errors.double(), weights.sum().double()))
        # Divided by all images, so that a damaged one does not change the weight of the others.
        self._backward(self._state.scaler.scale(total / self._recipe.global_batch))
        yield totals
        while outputs:
            # Popped, so that what a part has kept for its backward pass is freed by it.
            self._backward(outputs.pop(), gradients.pop())
            yield totals

    def _backward(self, output: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
        with held_statistics(self._norms) if self._execution.performance.recompute else contextlib.nullcontext():
            output.backward(gradient)

    def _recording(self, *inputs: torch.Tensor) -> GraphedPass:
        """The recorded pass for images of this shape, recorded at the first ones."""
        shape = inputs[0].shape
        if shape not in self._recorded:
            assert self._gradients is not None
            with self._gradients.unchanged(), self.statistics.unchanged():
                earlier = next(iter(self._recorded.values()), None)
                self._recorded[shape] = GraphedPass(self._forward_backward, *inputs, beside=earlier)
        return self._recorded[shape]


def _dropout_seed(seed: int, step: int, ghost: int) -> int:
    """The seed of a ghost batch's dropout masks, a pure function of (seed, step, ghost batch)."""
    return int(np.random.SeedSequence((seed, step, ghost)).generate_state(1, np.uint64)[0] >> np.uint64(1))
