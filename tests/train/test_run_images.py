"""Contact sheets. Oracle: the images on them."""

import io

import numpy as np
from PIL import Image

from dist_resnet.train.run_images import contact_sheet


def test_every_image_is_at_its_place_on_the_sheet():
    images = np.random.default_rng(0).integers(0, 256, (11, 5, 7, 3), dtype=np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(images))))
    assert sheet.shape == (2 * 7 - 2, 8 * 9 - 2, 3)
    for number, image in enumerate(images):
        top, left = number // 8 * 7, number % 8 * 9
        np.testing.assert_array_equal(sheet[top : top + 5, left : left + 7], image)
    assert (sheet[7:, 3 * 9 :] == 255).all()
