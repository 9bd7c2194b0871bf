"""What to prepare from which source."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dist_resnet.data.image.ingest import Shrink
from dist_resnet.data.prepare.split_choice import SplitChoice
from dist_resnet.data.shards.split_names import split_of

_MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which set to prepare from which source. Raises ValueError for impossible values."""

    source: str
    target: str
    split: str | None = None
    """The split of a source that does not name its splits."""
    label_column: str | None = None
    """The column of labels, if Parquet shards have several; of classes in a table or in WebDataset's JSON."""
    labels: str | None = None
    """Address of a table of images and classes, if the source has several or none of its own."""
    file_column: str | None = None
    """The column of files of such a table."""
    split_column: str | None = None
    """The column of splits of such a table."""
    class_map: str | None = None
    """Address of a list of classes in the order of their labels."""
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    """What the source calls a split, if not by a usual name."""
    seed: int = 0
    shard_megabytes: float = 500
    on_damaged: Literal["skip", "error"] = "skip"
    on_damaged_class: Literal["refuse", "keep"] = "refuse"
    """If every image of a class is damaged: refuse the set, or keep the class as an empty one."""
    shrink: Shrink | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _MAX_SEED:
            raise ValueError(f"the seed must be in 0 .. {_MAX_SEED}, got {self.seed}")
        if not self.shard_megabytes > 0:
            raise ValueError(f"--shard-megabytes must be more than 0, got {self.shard_megabytes:g}")
        name = self.split_name
        if name is not None and not (name.isascii() and name.islower() and name.isalpha()):
            raise ValueError(f"the split's name must consist of the letters a .. z, got {self.split!r}")
        if self.split is not None and (named := [f"--{split}-split" for split in self.split_choice.names]):
            raise ValueError(f"--split is for images of one split; leave out {' and '.join(named)}, or --split")
        if self.source.rstrip("/") == self.target.rstrip("/"):
            raise ValueError(f"source and target are both {self.source}; give another --target")

    @property
    def split_name(self) -> str | None:
        """The split's name in the set: train, validation or test for any known form of these."""
        return None if self.split is None else split_of(self.split) or self.split

    @property
    def split_choice(self) -> SplitChoice:
        """What the source calls its splits."""
        return SplitChoice(train=self.train_split, validation=self.validation_split, test=self.test_split)

    def identity(self) -> dict[str, Any]:
        """The options that the shards depend on."""
        return {
            "source": self.source,
            "split": self.split,
            "label_column": self.label_column,
            "labels": self.labels,
            "file_column": self.file_column,
            "split_column": self.split_column,
            "class_map": self.class_map,
            "train_split": self.train_split,
            "validation_split": self.validation_split,
            "test_split": self.test_split,
            "seed": self.seed,
            "shard_megabytes": self.shard_megabytes,
            "shrink": None if self.shrink is None else asdict(self.shrink),
        }
