"""A run's initial weights: a file in its directory that its driver writes and every worker reads and verifies.

The address that they came from is not read again: it may have changed, and workers may not reach it.
"""

import hashlib

import safetensors.torch

from dist_resnet.train.context import RunContext
from dist_resnet.train.state import TrainState

FILE = "initial.safetensors"
_CLASSIFIER = "head.classifier."


def load_initial(state: TrainState, context: RunContext) -> None:
    """Puts a run's initial weights, if it has any, into the state before the first step; a new head stays as drawn.

    Raises ValueError if the file is not the one that the recipe names, OSError once the storage has failed for too
    long.
    """
    initial = context.recipe.initial
    if initial.weights is None:
        return
    content = context.patiently(lambda: context.directory.read(FILE), "cannot be read")
    if hashlib.sha256(content).hexdigest() != initial.sha256:
        raise ValueError(
            f"{context.directory.child(FILE)} is damaged: it does not have the sha256 of the recipe's initial weights; "
            "delete the run and start it again"
        )
    weights = safetensors.torch.load(content)
    if initial.head == "new":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_CLASSIFIER)}
    state.load(state.live_weights() | weights, {}, {"step": 0, "scaler": {}})
