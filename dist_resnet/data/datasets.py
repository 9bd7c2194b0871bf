"""Constants of the known data sets: number of classes, mean and standard deviation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """Constants of a data set; `mean` and `std` refer to RGB values in [0, 1]."""

    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DATASETS: dict[str, Dataset] = {
    "imagenet": Dataset(1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Dataset(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Dataset(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
