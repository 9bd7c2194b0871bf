"""The precision of the forward and backward pass: bf16 and fp16 by autocast, fp16 with loss scaling, fp32."""

import contextlib

import torch

from dist_resnet.recipe import Execution

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(execution: Execution) -> None:
    """Raises ValueError where the execution's device, settled by now, cannot train at its precision."""
    if execution.precision == "fp16" and execution.device == "cpu":
        raise ValueError("execution.precision fp16 works on GPUs only; on the CPU use bf16 or fp32")


def autocast(execution: Execution, device: torch.device) -> contextlib.AbstractContextManager:
    """The context under which the model and the loss are computed."""
    dtype = _AUTOCAST.get(execution.precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def loss_scaler(execution: Execution, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of fp16's gradients; it passes everything through at other precisions."""
    return torch.amp.GradScaler(device.type, enabled=execution.precision == "fp16")
