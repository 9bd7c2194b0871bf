"""The precision of the forward and backward pass: bf16 and fp16 by autocast, fp16 with loss scaling, fp32, TF32."""

import contextlib
import logging

import torch

from dist_resnet.recipe import Execution

logger = logging.getLogger(__name__)

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(execution: Execution) -> None:
    """Raises ValueError if the execution's device cannot train at its precision; warns if it is slow.

    The device must be settled. The warning is about this machine's CPU, assumed to be that of the cluster's machines.
    """
    if execution.device != "cpu":
        return
    if execution.precision in ("fp16", "tf32"):
        raise ValueError(f"execution.precision {execution.precision} works on GPUs only; on the CPU use fp32 or bf16")
    abilities = torch.cpu.get_capabilities()
    if execution.precision == "bf16" and not any(name.endswith("bf16") and has for name, has in abilities.items()):
        logger.warning(
            "this CPU (%s) has no bf16 instructions: training in bf16 is many times slower than in fp32; "
            "use --execution.precision fp32",
            abilities.get("cpu_name", "unknown"),
        )


def configure_backend(execution: Execution) -> None:
    """Chooses cuDNN's algorithms (deterministic, or the fastest measured) and whether GPUs round fp32 to TF32."""
    torch.backends.cudnn.deterministic = execution.performance.deterministic
    torch.backends.cudnn.benchmark = not execution.performance.deterministic
    # Set both: by default, torch rounds in cuDNN's convolutions but not in cuBLAS's matrix products.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = execution.precision == "tf32"


def autocast(execution: Execution, device: torch.device) -> contextlib.AbstractContextManager:
    """The context in which the model and the loss are computed."""
    dtype = _AUTOCAST.get(execution.precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def shared_casts(device: torch.device) -> contextlib.AbstractContextManager:
    """Within the block, all passes under `autocast` share one cast of each weight, which must not change meanwhile."""
    # A context of autocast drops its casts only where it is the outermost.
    return torch.autocast(device.type, enabled=False)


def loss_scaler(execution: Execution, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of fp16 gradients; disabled at other precisions."""
    return torch.amp.GradScaler(device.type, enabled=execution.precision == "fp16")
