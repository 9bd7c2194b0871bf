"""Small pictures that live on the device as one uint8 tensor; a batch is one indexing operation."""

import numpy as np
import torch

from dist_resnet.data.input.decoders import open_decoder
from dist_resnet.data.input.streams import whole_requests
from dist_resnet.data.shards.split import ShardReader
from dist_resnet.recipe import Decode

_BATCH = 256


def load_pictures(
    reader: ShardReader, size: int, *, decode: Decode, device: torch.device, num_threads: int
) -> tuple[torch.Tensor, np.ndarray, dict[int, str]]:
    """Decodes a whole split: (uint8 [num_images, size, size, 3] on the device, labels int64 [num_images], what is
    wrong with the pictures of these indices, which are neutral ones instead)."""
    split = reader.split
    pictures = torch.empty((split.num_images, size, size, 3), dtype=torch.uint8)
    labels = np.empty(split.num_images, np.int64)
    decoder = open_decoder(decode, max_batch=_BATCH, num_threads=num_threads, device=torch.device("cpu"))
    damaged = {}
    for request, pixels in decoder.decode(whole_requests(reader, size, _BATCH)):
        pictures[torch.from_numpy(request.indices)] = pixels
        labels[request.indices] = request.labels
        damaged |= {int(request.indices[place]): reason for place, reason in request.damaged.items()}
    return pictures.to(device), labels, damaged


def crop_pictures(
    pictures: torch.Tensor, indices: np.ndarray, windows: np.ndarray, flips: np.ndarray, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts windows out of padded pictures: (uint8 [N, S, S, 3], bool [N, S, S, 1]: which pixels are the picture's).

    `pictures`: uint8 [M, H, W, 3]; `windows`: int64 [N, 4], all S x S, counted from the padding's corner; `flips`:
    bool [N]. Pixels of the padding hold some pixel of the picture's border and are marked False.
    """
    device = pictures.device
    size = int(windows[0, 2])
    reach = np.arange(size)
    rows = windows[:, :1] + reach - padding
    columns = windows[:, 1:2] + np.where(flips[:, None], reach[::-1], reach) - padding
    index = torch.from_numpy(np.ascontiguousarray(indices)).to(device)
    rows, columns = torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
    height, width = pictures.shape[1:3]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return pictures[index[:, None, None], rows[:, :, None], columns[:, None, :]], inside[..., None]


def centre_crop(pictures: torch.Tensor, window: np.ndarray, crop: int) -> torch.Tensor:
    """The same window (top, left, height, width) of every picture, resized to crop x crop: uint8 [N, crop, crop, 3]."""
    top, left, height, width = (int(number) for number in window)
    pixels = pictures[:, top : top + height, left : left + width]
    if (height, width) == (crop, crop):
        return pixels
    values = torch.nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2).float(), (crop, crop), mode="bilinear", antialias=True, align_corners=False
    )
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
