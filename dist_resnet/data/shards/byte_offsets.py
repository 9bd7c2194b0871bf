"""Where the encoded images of a prepared shard lie in its file, so that each can be read by a byte range.

A prepared shard holds its images plain: neither compressed nor dictionary-encoded, so each lies in the file as it
is. The places are in the footer under the key `dist_resnet.images`: base64 of the zlib-compressed little-endian
int64 array [3, N] of each image's byte offset in the file, number of bytes, and label.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping

import numpy as np

KEY = b"dist_resnet.images"
_EARLIER_KEY = b"dist_resnet.pictures"


def encode(places: np.ndarray) -> bytes:
    """The value for the footer; `places`: int64 [3, N] of offsets, lengths and labels."""
    return base64.b64encode(zlib.compress(places.astype("<i8").tobytes(), 9))


def decode(metadata: Mapping[bytes, bytes] | None) -> np.ndarray | None:
    """The places (int64 [3, N]: offsets, lengths, labels) in a footer's key-value metadata; None where it has none.

    Raises ValueError where they cannot be read.

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
