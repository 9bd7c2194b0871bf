"""Shards that are there twice: a copy or a link within a split, or images of training that are validated on.

A footer has the places and sizes of what is in its shard, so that shards of one footer are taken for copies.
"""

from dist_resnet.data.shards.split import Split


def find_copy(split: Split) -> tuple[str, str] | None:
    """The first shard of a split that is a copy of an earlier one, and that one."""
    known: dict[bytes, str] = {}
    for shard, footer in zip(split.shards, split.footers, strict=True):
        if footer in known:
            return shard, known[footer]
        known[footer] = shard
    return None


def describe_copies(split: Split, what: str) -> list[str]:
    """A line on shards of a split that are copies of others, if any are; `what`: the split's part, for the line."""
    found = find_copy(split)
    if found is None:
        return []
    count = len(split.footers) - len(set(split.footers))
    return [
        f"{count} of the {len(split.shards)} shards of the {what} at {split.uri} are copies of others, {found[0]} of "
        f"{found[1]}; their images are seen as often as they are there"
    ]


def describe_shared(train: Split, validation: Split) -> list[str]:
    """A line on shards that are in both splits, if any are."""
    known = set(train.footers)
    count = sum(footer in known for footer in validation.footers)
    if not count:
        return []
    return [
        f"{count} of the {len(validation.shards)} shards of the validation images at {validation.uri} are those of "
        "training images too; the errors on these tell nothing of other images"
    ]
