"""Many pictures as one."""

import io

import numpy as np
from PIL import Image

_COLUMNS, _GAP = 8, 2


def contact_sheet(pictures: np.ndarray) -> bytes:
    """A PNG of uint8 [N, H, W, 3] in rows of eight."""
    num, height, width, _ = pictures.shape
    columns = min(num, _COLUMNS)
    rows = -(-num // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for number, picture in enumerate(pictures):
        place = (number % columns * (width + _GAP), number // columns * (height + _GAP))
        sheet.paste(Image.fromarray(picture), place)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
