"""Parquet partitioned by label, as Spark and Hive write it: labels are in folder names (`label=3/part-0.parquet`).

Such labels are not read; the refusal has the command that writes them into the files.
"""

import re

_FOLDER = re.compile(r"[^/=]+=[^/]*")


def is_partition(name: str) -> bool:
    """Whether a folder's name is a column's value, such as `label=3`."""
    return _FOLDER.fullmatch(name) is not None


def conversion(folder: str) -> str | None:
    """The advice about values in the names of `folder` and its parents; None if there are none."""
    names = folder.split("/")
    first = next((number for number, name in enumerate(names) if is_partition(name)), None)
    if first is None:
        return None
    return (
        f"values in folder names, such as {names[first]}, are not read; write them into the files with: "
        f'python -c "import pyarrow.dataset as d; d.write_dataset(d.dataset({"/".join(names[:first])!r}, '
        "partitioning='hive'), 'TARGET/train', format='parquet')\", for each split (validation), then give those shards"
    )
