"""Parquet whose labels are in the names of its folders (`label=3/part-0.parquet`), as Spark and Hive partition it.

Such labels are not read; the refusal says what writes them into the files.
"""

import re

_FOLDER = re.compile(r"[^/=]+=[^/]*")


def is_partition(name: str) -> bool:
    """Whether a folder's name has a column's value, as `label=3`."""
    return _FOLDER.fullmatch(name) is not None


def conversion(folder: str) -> str | None:
    """What to do about labels in the names of folders: of `folder`, or of some above it; None if there are none."""
    names = folder.split("/")
    first = next((place for place, name in enumerate(names) if is_partition(name)), None)
    if first is None:
        return None
    return (
        f"the names of folders, such as {names[first]}, have values that are not read; write them into the files by: "
        f'python -c "import pyarrow.dataset as d; d.write_dataset(d.dataset({"/".join(names[:first])!r}, '
        "partitioning='hive'), 'TARGET/train', format='parquet')\", for each split (validation), then give those shards"
    )
