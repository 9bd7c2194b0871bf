"""One optimizer step over this worker's ghost batches."""

import contextlib
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from dist_resnet.data.input.batch import Batch
from dist_resnet.model.shortcuts import SHORTCUTS
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.train.distributed import data_parallel
from dist_resnet.train.ghost_norm import normalize_by_ghost_batch
from dist_resnet.train.graphs import GraphedPass, Pass, warm_up
from dist_resnet.train.optimizer import set_learning_rate
from dist_resnet.train.passes import joined, passes
from dist_resnet.train.precision import autocast, shared_casts
from dist_resnet.train.recompute import held_statistics
from dist_resnet.train.state import TrainState
from dist_resnet.train.statistics import RunningStatistics
from dist_resnet.worker import Worker


class TrainStep:
    """Takes optimizer steps: BN per ghost batch, gradients reduced over the workers once per step.

    The loss is the mean over the global batch, so a step does not depend on the number of workers, except for the order
    of floating-point sums. BN's running statistics follow ghost batch 0, which is rank 0's.
    """

    def __init__(self, recipe: Recipe, execution: Execution, worker: Worker, state: TrainState) -> None:
        self._recipe, self._execution, self._worker, self._state = recipe, execution, worker, state
        self._passes = passes(recipe, execution, worker)
        if len(self._passes[0]) > 1:
            normalize_by_ghost_batch(state.model, recipe.ghost_batch)
        self._norms = [module for module in state.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        self._parallel = data_parallel(state.model, worker)
        self.statistics = RunningStatistics(state.model)
        """BN's running statistics: those of ghost batch 0 on rank 0, of no meaning on other ranks."""
        self._graphs: dict[int, GraphedPass] = {}
        self._settle_buckets()

    def __call__(self, batches: Iterable[Batch], learning_rate: float) -> torch.Tensor:
        """Takes the step numbered `state.step` and counts it.

        Takes this worker's ghost batches, in rising order, from `batches`, those of a pass when the pass begins.
        Returns this worker's float64 [3] on the device: the sum of losses, the number of top-1 errors and the number of
        images, without images of weight 0. Raises ValueError if `batches` has other ghost batches.
        """
        state, batches = self._state, iter(batches)
        state.model.train()
        set_learning_rate(state.optimizer, learning_rate)
        totals = torch.zeros(3, dtype=torch.float64, device=self._worker.device)
        # A recording makes its own casts, as the weights are at every replay.
        casts = contextlib.nullcontext() if self._is_graphed else shared_casts(self._worker.device)
        with self.statistics.uncounted(), casts:
            for ghosts in self._passes:
                inputs = joined(batches, ghosts)
                run = self._pass_of(*inputs)
                with self._reduction(ghosts == self._passes[-1]):
                    self._seed_masks(ghosts[0])
                    totals += run(*inputs)
                del inputs  # before the next are made
                if ghosts[0] == 0:
                    self.statistics.keep()
        if self._worker.rank == 0:
            self.statistics.put_back()
            self.statistics.count()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=not self._is_graphed)
        state.step += 1
        return totals

    def _seed_masks(self, ghost: int) -> None:
        if SHORTCUTS[self._recipe.model.shortcut].draws_masks:
            torch.manual_seed(_dropout_seed(self._recipe.seed, self._state.step, ghost))

    def _forward_backward(self, images: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        recipe = self._recipe
        with autocast(self._execution, self._worker.device):
            logits = self._parallel(images)
            losses = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing, reduction="none")
        total = (losses * weights).sum()
        with held_statistics(self._norms) if self._execution.performance.recompute else contextlib.nullcontext():
            # Divided by all images, so that a damaged one does not change the weight of the others.
            self._state.scaler.scale(total / recipe.global_batch).backward()
        errors = ((logits.argmax(dim=1) != labels) * weights).sum()
        return torch.stack((total.detach().double(), errors.double(), weights.sum().double()))

    def _settle_buckets(self) -> None:
        """Runs a discarded backward pass on blank images: DDP reorders its reduction buckets after the first one, so
        every step, also the first after a resume, sums gradients in the same order."""
        if self._worker.world_size == 1:
            return
        recipe, device = self._recipe, self._worker.device
        size = recipe.augment.size
        images = torch.zeros(recipe.ghost_batch, 3, size, size, device=device)
        if self._execution.performance.channels_last:
            images = images.to(memory_format=torch.channels_last)
        self._state.model.train()
        self.statistics.keep()
        with self.statistics.uncounted():
            labels = torch.zeros(recipe.ghost_batch, dtype=torch.int64, device=device)
            self._forward_backward(images, labels, torch.ones(recipe.ghost_batch, device=device))
        self.statistics.put_back()
        self._state.optimizer.zero_grad()

    @property
    def _is_graphed(self) -> bool:
        return self._execution.performance.cuda_graphs and self._worker.device.type == "cuda"

    def _pass_of(self, *inputs: torch.Tensor) -> Pass:
        """The pass over such inputs. Those of all sizes are recorded at the first, before there are gradients."""
        if not self._is_graphed:
            return self._forward_backward
        if not self._graphs:
            for images in {len(ghosts) * self._recipe.ghost_batch for ghosts in self._passes}:
                self._graphs[images] = self._record(*(tensor[:images] for tensor in inputs))
        return self._graphs[len(inputs[0])]

    def _record(self, *inputs: torch.Tensor) -> GraphedPass:
        """Records a forward and backward pass."""
        for parameter in self._state.model.parameters():
            # Recordings share the gradients.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.statistics.keep()
        warm_up(self._forward_backward, *inputs)
        graph = GraphedPass(self._forward_backward, *inputs)
        self.statistics.put_back()
        self._state.optimizer.zero_grad(set_to_none=False)
        return graph

    def _reduction(self, reduce: bool) -> contextlib.AbstractContextManager:
        """Within the block, gradients are reduced over the workers only if `reduce`."""
        if reduce or self._worker.world_size == 1:
            return contextlib.nullcontext()
        return self._parallel.no_sync()  # pyrefly: ignore


def _dropout_seed(seed: int, step: int, ghost: int) -> int:
    """The seed of a ghost batch's dropout masks, a pure function of (seed, step, ghost batch)."""
    return int(np.random.SeedSequence((seed, step, ghost)).generate_state(1, np.uint64)[0] >> np.uint64(1))
