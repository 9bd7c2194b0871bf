"""Duplicate shards: a copy or a link within a split, or training shards in validation.

A footer has the offsets and sizes of everything in its shard, so shards with equal footers are taken as copies.
"""

from dist_resnet.data.shards.split import Split


def find_copy(split: Split) -> tuple[str, str] | None:
    """(copy, original) for the first shard of a split that is a copy of an earlier one; None without one."""
    known: dict[bytes, str] = {}
    for shard, footer in zip(split.shards, split.footers, strict=True):
        if footer in known:
            return shard, known[footer]
        known[footer] = shard
    return None


def describe_copies(split: Split, what: str) -> list[str]:
    """A line about shards of a split that are copies of others, if there are any; `what`: the split's role."""
    found = find_copy(split)
    if found is None:
        return []
    count = len(split.footers) - len(set(split.footers))
    return [
        f"{count} of the {len(split.shards)} shards of the {what} at {split.uri} are copies of others, such as "
        f"{found[0]} of {found[1]}; their images count once for each copy"
    ]


def describe_shared(train: Split, validation: Split) -> list[str]:
    """A line about shards that are in both splits, if there are any."""
    known = set(train.footers)
    count = sum(footer in known for footer in validation.footers)
    if not count:
        return []
    return [
        f"{count} of the {len(validation.shards)} shards of the validation images at {validation.uri} are also "
        "training shards; errors on these say nothing about other images"
    ]
