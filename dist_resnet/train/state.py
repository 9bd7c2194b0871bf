"""Everything that a resume needs: weights, BN statistics, momentum, loss scale and the number of steps done.

Order and augmentation are pure functions of the step, so no generator's state belongs here.
"""

from dataclasses import dataclass
from typing import Any

import torch

_MOMENTUM = "momentum."


@dataclass(kw_only=True)
class TrainState:
    """The training state between two steps."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's parameters and BN statistics by name, on the CPU in the default memory format."""
        return {name: _portable(tensor) for name, tensor in self.model.state_dict().items()}

    def momenta(self) -> dict[str, torch.Tensor]:
        """The momentum buffers by `momentum.<parameter name>`; empty before the first step."""
        buffers = {}
        for name, parameter in self.model.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                buffers[_MOMENTUM + name] = _portable(buffer)
        return buffers

    def counters(self) -> dict[str, Any]:
        """The step and the loss scale as JSON values."""
        return {"step": self.step, "scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def load(self, weights: dict[str, Any], momenta: dict[str, Any], counters: dict[str, Any]) -> None:
        """Puts back what the three methods above gave, keeping device and memory format.

        Raises ValueError where the tensors are not those of this model.
        """
        try:
            self.model.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint holds another model: {str(error).splitlines()[-1].strip()}") from error
        for name, parameter in self.model.named_parameters():
            if _MOMENTUM + name in momenta:
                buffer = torch.empty_like(parameter).copy_(momenta[_MOMENTUM + name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        if counters["scaler"]:
            self.scaler.load_state_dict(counters["scaler"])
        self.step = counters["step"]


def _portable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True).contiguous()
