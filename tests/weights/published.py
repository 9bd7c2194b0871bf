"""Networks of torchvision and timm with random weights and BN statistics, as if trained."""

import pytest
import torch
import torchvision


def torchvision_network(depth: int = 50, classes: int = 7) -> torch.nn.Module:
    """torchvision's resnet50, 101 or 152."""
    return _as_trained(getattr(torchvision.models, f"resnet{depth}")(num_classes=classes))


def timm_network(depth: int = 50, classes: int = 7) -> torch.nn.Module:
    """timm's resnetv2_50, 101 or 152; skips the test if timm is not installed."""
    timm = pytest.importorskip("timm", reason="timm is not installed: uv sync")
    return _as_trained(timm.create_model(f"resnetv2_{depth}", num_classes=classes))


def _as_trained(network: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.2, generator=generator)
            elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            else:
                tensor.fill_(9)
    return network.eval()
