"""Writes pictures as Parquet shards in the Hugging Face layout, and reads CIFAR's own formats."""

import json
import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq


def encode_table(
    encoded: Sequence[bytes],
    paths: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    image_column: str = "image",
) -> pa.Table:
    """A table of encoded pictures in the Hugging Face layout; `labels`: int64 [N]."""
    label = {"names": list(class_names), "_type": "ClassLabel"}
    features = {"info": {"features": {image_column: {"_type": "Image"}, "label": label}}}
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({image_column: picture, "label": pa.int64()}, {"huggingface": json.dumps(features)})
    column = pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.array(paths, pa.string())], fields=list(picture)
    )
    return pa.table([column, pa.array(labels, pa.int64())], schema=schema)


def write_shard(filesystem: pafs.FileSystem, path: str, table: pa.Table, *, rows_per_group: int) -> None:
    """Writes a table as one shard, whole or not at all.

    The picture bytes are neither compressed nor dictionary-encoded: JPEG and PNG do not shrink, and reading them
    would cost twice as much.
    """
    local = isinstance(filesystem, pafs.LocalFileSystem)
    # An object appears when its upload is complete; a local file does when it gets its name.
    writing = f"{path}.{uuid.uuid4().hex}.partial" if local else path
    if local:
        filesystem.create_dir(path.rpartition("/")[0] or ".", recursive=True)
    try:
        with filesystem.open_output_stream(writing) as stream:
            pq.write_table(table, stream, row_group_size=rows_per_group, compression="none", use_dictionary=["label"])
        if local:
            filesystem.move(writing, path)
    except BaseException:
        if local and filesystem.get_file_info(writing).type != pafs.FileType.NotFound:
            filesystem.delete_file(writing)
        raise
