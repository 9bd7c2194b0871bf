"""Everything that a resume needs: weights, BN statistics, the optimizer's state, loss scale and step count.

Order and augmentation are pure functions of the step, so no random generator's state is needed.
"""

from dataclasses import dataclass
from typing import Any

import torch

from dist_resnet.model.resnet import ResNet
from dist_resnet.train.host_copy import portable
from dist_resnet.train.optimizer import check_slots

# The name of SGD's slot in checkpoints of the first release.
_OLD_SLOTS = {"momentum": "momentum_buffer"}


@dataclass(kw_only=True)
class TrainState:
    """The training state between two steps."""

    model: ResNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's parameters and BN statistics by name, on the CPU in the default memory format."""
        return {name: portable(tensor) for name, tensor in self.live_weights().items()}

    def slots(self) -> dict[str, torch.Tensor]:
        """A copy of `live_slots` on the CPU in the default memory format."""
        return {name: portable(tensor) for name, tensor in self.live_slots().items()}

    def live_weights(self) -> dict[str, torch.Tensor]:
        """The model's parameters and BN statistics by name, which the next step changes."""
        return self.model.state_dict()

    def live_slots(self) -> dict[str, torch.Tensor]:
        """The optimizer's state by `<slot>.<parameter>`, such as `momentum_buffer.head.classifier.weight`.

        Empty before the first step; the next step changes it. Raises ValueError for a slot that `load` would not
        restore.
        """
        tensors = {}
        for name, parameter in self.model.named_parameters():
            kept = {slot: value for slot, value in self.optimizer.state.get(parameter, {}).items() if value is not None}
            check_slots(self.optimizer, kept)
            tensors |= {f"{slot}.{name}": value for slot, value in kept.items()}
        return tensors

    def counters(self) -> dict[str, Any]:
        """The step and the loss scale as JSON values."""
        return {"step": self.step, "scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def load(self, weights: dict[str, Any], slots: dict[str, Any], counters: dict[str, Any]) -> None:
        """Restores what `weights`, `slots` and `counters` returned, keeping device and memory format.

        Raises ValueError if the tensors do not match this model and this optimizer.
        """
        try:
            self.model.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another model: {str(error).splitlines()[-1].strip()}") from error
        parameters = dict(self.model.named_parameters())
        for key, value in slots.items():
            slot, _, name = key.partition(".")
            slot = _OLD_SLOTS.get(slot, slot)
            check_slots(self.optimizer, [slot])
            # Slots have the parameter's shape or are scalars, such as a step count.
            if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
                raise ValueError(f"the checkpoint's {key} of shape {tuple(value.shape)} matches no parameter")
            like = (
                torch.empty_like(parameters[name])
                if value.ndim
                else torch.empty_like(value, device=parameters[name].device)
            )
            self.optimizer.state[parameters[name]][slot] = like.copy_(value)
        if counters["scaler"]:
            self.scaler.load_state_dict(counters["scaler"])
        self.step = counters["step"]
