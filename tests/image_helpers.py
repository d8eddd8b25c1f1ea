"""What the tests of image sources share: small pictures, and what a bad source says."""

import numpy as np
import pytest
from PIL import Image

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources.images import open_images


def message(source: object, image_size: int = 4, channels: int = 3) -> str:
    with pytest.raises(UserError) as caught:
        open_images(str(source), image_size=image_size, channels=channels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def solid(value: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new("L", size, value)


def noise(size: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))
