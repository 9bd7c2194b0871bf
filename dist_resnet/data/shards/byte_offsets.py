"""The byte range of each encoded image of a prepared shard, so that each can be read alone.

A prepared shard stores its images plain: neither compressed nor dictionary-encoded, each in one piece. The footer has
their byte ranges under the key `dist_resnet.images`: base64 of the zlib-compressed little-endian int64 array [3, N] of
each image's byte offset in the file, number of bytes, and label.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping

import numpy as np

KEY = b"dist_resnet.images"
_EARLIER_KEY = b"dist_resnet.pictures"


def encode(ranges: np.ndarray) -> bytes:
    """The value for the footer; `ranges`: int64 [3, N] of offsets, lengths and labels."""
    return base64.b64encode(zlib.compress(ranges.astype("<i8").tobytes(), 9))


def decode(metadata: Mapping[bytes, bytes] | None) -> np.ndarray | None:
    """The byte ranges (int64 [3, N]: offsets, lengths, labels) in a footer's key-value metadata; None if it has none.

    Raises ValueError if they cannot be decoded.

    >>> decode({KEY: encode(np.array([[4, 40], [30, 20], [7, 1]]))}).tolist()
    [[4, 40], [30, 20], [7, 1]]
    """
    value = (metadata or {}).get(KEY) or (metadata or {}).get(_EARLIER_KEY)
    if value is None:
        return None
    try:
        values = np.frombuffer(zlib.decompress(base64.b64decode(value, validate=True)), "<i8")
        return values.reshape(3, -1).astype(np.int64)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"the footer's {KEY.decode()} cannot be read ({error})") from error
