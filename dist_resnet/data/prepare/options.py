"""What to prepare from which source."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dist_resnet.data.image.ingest import Shrink
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
    """The column of labels, if the Parquet shards have several."""
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
        if self.source.rstrip("/") == self.target.rstrip("/"):
            raise ValueError(f"source and target are both {self.source}; give another --target")

    @property
    def split_name(self) -> str | None:
        """The split's name in the set: train, validation or test for any known form of these."""
        return None if self.split is None else split_of(self.split) or self.split

    def identity(self) -> dict[str, Any]:
        """The options that the shards depend on."""
        return {
            "source": self.source,
            "split": self.split,
            "label_column": self.label_column,
            "seed": self.seed,
            "shard_megabytes": self.shard_megabytes,
            "shrink": None if self.shrink is None else asdict(self.shrink),
        }
