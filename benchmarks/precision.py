"""How far bf16 autocast turns the gradient at initialization, beside fp32 with weights that are rounded to bf16.

    python benchmarks/precision.py --train "cifar10/train-*.parquet" --result precision.md

One step's gradient of every convolution on one batch of real CIFAR-10 images, as one vector: its cosine with fp32's.
Rounding the weights alone shows how rough the network itself is there: what it leaves of 1 is not bf16's arithmetic.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.input.normalize import Normalizer
from dist_resnet.data.input.resident import load_pictures
from dist_resnet.data.shards.split import ShardReader, open_split
from dist_resnet.model import build_model
from dist_resnet.recipe import Model

CPU = torch.device("cpu")
NETWORKS = ((20, "full_preactivation"), (110, "original"), (110, "full_preactivation"), (164, "full_preactivation"))


def main() -> None:
    """Measures each network and prints a table; appends it to a file where --result is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="CIFAR-10's training shards")
    parser.add_argument("--batch", type=int, default=64, help="images in the batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--result", type=Path, help="Markdown file to append the figures to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, labels = batch_of(options.train, options.batch)
    lines = ["| network | bf16 autocast | fp32, weights rounded to bf16 |", "|---|---:|---:|"]
    for depth, placement in NETWORKS:
        start = time.perf_counter()
        exact, autocast, rounded = (
            gradient(depth, placement, images, labels, how) for how in ("", "autocast", "round")
        )
        cosines = [F.cosine_similarity(exact, other, dim=0).item() for other in (autocast, rounded)]
        lines.append(f"| ResNet-{depth}, {placement} | {cosines[0]:.3f} | {cosines[1]:.3f} |")
        print(f"{lines[-1]} {time.perf_counter() - start:.0f} s")
    text = "\n".join(lines) + "\n"
    if options.result:
        with options.result.open("a") as file:
            file.write(text)


def batch_of(train: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of a split as the network's input, and their labels."""
    pictures, labels, _ = load_pictures(ShardReader(open_split(train)), 32, decode="cpu", device=CPU, num_threads=1)
    images = Normalizer(DATASETS["cifar10"], CPU, channels_last=True)(pictures[:size])
    return images, torch.from_numpy(labels[:size].astype(np.int64))


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
    main()
