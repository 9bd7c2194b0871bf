"""Which names of a source stand for which split, where --train-split and its like say so."""

from collections.abc import Collection
from dataclasses import dataclass

from dist_resnet.data.shards.split_names import ORDER, split_of


@dataclass(frozen=True, kw_only=True)
class SplitChoice:
    """The name in the source of some splits; the others are known by their usual names."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None

    def __post_init__(self) -> None:
        for split, name in self.names.items():
            if not name or "/" in name:
                raise ValueError(
                    f"--{split}-split takes the name of one folder, such as my_{split}, without a path; got {name!r}"
                )
        if len(set(self.names.values())) < len(self.names):
            raise ValueError(
                f"{' and '.join(f'--{split}-split' for split in self.names)} name the same images; give different names"
            )

    @property
    def names(self) -> dict[str, str]:
        """The chosen name of each split that has one."""
        return {split: name for split in ORDER if (name := getattr(self, split)) is not None}

    def split_of(self, name: str) -> str | None:
        """The split that a name stands for, or None; a chosen split has its chosen name only.

        >>> choice = SplitChoice(validation="test")
        >>> [choice.split_of(name) for name in ("train", "Test", "val")]
        ['train', 'validation', None]
        """
        found = split_of(name)
        for split, chosen in self.names.items():
            if name == chosen or (found is not None and found == split_of(chosen)):
                return split
        return None if found in self.names else found

    def is_replaced(self, name: str) -> bool:
        """Whether a name usually stands for a split for which another name is chosen."""
        return split_of(name) in self.names and self.split_of(name) is None

    def check_found(self, found: Collection[str], uri: str) -> None:
        """Raises ValueError if a chosen split is not among the splits found."""
        for split, name in self.names.items():
            if split not in found:
                raise ValueError(
                    f"{uri} has no labeled images under the name {name} of --{split}-split; "
                    f"it has {', '.join(found)}; give the name of a folder with class folders, of shards, or of a "
                    "table's split"
                )
