"""What every row of gpu_evidence.py is given: images, a folder, the end of the time, and full or toy size."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dist_resnet.ablation.grid import Choice
from dist_resnet.data.prepare.demo import write_demo

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
REPLICATION = Choice(tables=("replication",), seeds=1)
"""The cells of ResNet-20, as the row accuracy trains them."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the rows of one call are measured."""

    folder: str
    """Where runs are stored, so that the next call continues them."""
    deadline: float
    """The end of the call, as `time.time` counts."""
    toy: bool = False
    """Sizes for the CPU, to see that a row works."""
    cifar: str | None = None
    """Folder with CIFAR-10's shards, train-*.parquet and test-*.parquet."""
    imagenet: str | None = None
    """Glob or folder of shards of full-size images."""
    accuracy: Choice = REPLICATION
    """The cells of the row accuracy, and their length."""
    at_once: int = 1
    """Cells that are trained at once."""

    def sized(self, full: T, toy: T) -> T:
        """The size for this call."""
        return toy if self.toy else full

    @property
    def seconds_left(self) -> float:
        """Seconds to the end of the call."""
        return self.deadline - time.time()

    def cifar_images(self) -> tuple[str, str]:
        """CIFAR-10's training and test images. Raises ValueError if they are not given."""
        if self.cifar:
            return f"{self.cifar}/train-*.parquet", f"{self.cifar}/test-*.parquet"
        if self.toy:
            return write_demo(self.folder, size=32, train_images=256, validation_images=20, seed=0)
        raise ValueError("needs --cifar FOLDER")

    def full_size_images(self) -> str:
        """Images of several hundred pixels. Raises ValueError if they are not given."""
        if self.imagenet:
            return self.imagenet
        if self.toy:
            return write_demo(self.folder, size=64, train_images=32, validation_images=10, seed=0)[0]
        raise ValueError("needs --imagenet GLOB")
