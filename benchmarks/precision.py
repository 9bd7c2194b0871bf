"""How far bf16 autocast turns the gradient at initialization, beside fp32 with weights that are rounded to bf16.

    python benchmarks/precision.py --train "cifar10/train-*.parquet" --result precision.md

One step's gradient of every convolution on one batch of real CIFAR-10 images, as one vector: its cosine with fp32's.
Rounding the weights alone shows how rough the network itself is there: what it leaves of 1 is not bf16's arithmetic.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import harness
import torch
import torch.nn.functional as F

from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.input.normalize import Normalizer
from dist_resnet.data.input.resident import load_images
from dist_resnet.data.shards.reader import ShardReader
from dist_resnet.data.shards.split import open_split
from dist_resnet.model import build_model
from dist_resnet.recipe import Model

CPU = torch.device("cpu")
NETWORKS = ((20, "full_preactivation"), (110, "original"), (110, "full_preactivation"), (164, "full_preactivation"))


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    train: str  # CIFAR-10's training shards.
    batch: int = harness.sized(64, quick=8)  # Images in the batch.
    threads: int = os.cpu_count() or 1
    networks: int = harness.sized(len(NETWORKS), quick=1)  # Networks that are measured, from the shallowest on.


def measure(options: Options) -> Iterator[str]:
    """A row for each network."""
    torch.set_num_threads(options.threads)
    images, labels = batch_of(options.train, options.batch)
    rows = (row(depth, placement, images, labels) for depth, placement in NETWORKS[: options.networks])
    yield from harness.table({"network": "", "bf16 autocast": ".3f", "fp32, weights rounded to bf16": ".3f"}, rows)


def row(depth: int, placement: str, images: torch.Tensor, labels: torch.Tensor) -> list[object]:
    """The cosines of a network."""
    exact, *others = (gradient(depth, placement, images, labels, how) for how in ("", "autocast", "round"))
    return [f"ResNet-{depth}, {placement}", *(F.cosine_similarity(exact, other, dim=0).item() for other in others)]


def batch_of(train: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of a split as the network's input, and their labels."""
    pixels, labels, _ = load_images(ShardReader(open_split(train)), 32, decode="cpu", device=CPU, num_threads=1)
    images = Normalizer(DATASETS["cifar10"].normalization, CPU, channels_last=True)(pixels[:size])
    return images, labels[:size]


def gradient(depth: int, placement: str, images: torch.Tensor, labels: torch.Tensor, how: str) -> torch.Tensor:
    """The gradient of all convolutions' weights as one float64 vector."""
    torch.manual_seed(0)
    model = build_model(Model(depth=depth, num_classes=10, placement=placement, stride_on="conv1x1"))  # pyrefly: ignore
    model.to(memory_format=torch.channels_last).train()
    if how == "round":
        for parameter in model.parameters():
            parameter.data.copy_(parameter.data.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    gradients = [convolution.weight.grad for convolution in convolutions]
    return torch.cat([each.double().flatten() for each in gradients if each is not None])


if __name__ == "__main__":
    harness.main(measure, Options, __doc__)
