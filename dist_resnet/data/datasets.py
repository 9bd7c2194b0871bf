"""Mean and deviation that normalize images, and the constants of the known data sets."""

from dataclasses import dataclass

from dist_resnet.recipe import Color, Data


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of RGB values in [0, 1]."""

    mean: Color
    std: Color


@dataclass(frozen=True)
class Dataset:
    """Constants of a known data set."""

    num_classes: int
    normalization: Normalization


DATASETS: dict[str, Dataset] = {
    "imagenet": Dataset(1000, Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    "cifar10": Dataset(10, Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "cifar100": Dataset(100, Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
}


def normalization_of(data: Data) -> Normalization:
    """The recipe's own mean and deviation, or those of its known data set.

    Raises ValueError for the data set `own` whose mean and deviation have not been looked up.
    """
    if data.mean is not None and data.std is not None:
        return Normalization(data.mean, data.std)
    if data.dataset not in DATASETS:
        raise ValueError(f"data.dataset {data.dataset} has no mean and deviation; give --data.mean and --data.std")
    return DATASETS[data.dataset].normalization
