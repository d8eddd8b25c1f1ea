"""The noise of sampled images: image k gets a function of (seed, k), drawn for 16 images at once on their device."""

import torch
from torch import Tensor

from .seeds import seeded_generator

BLOCK = 16
"""Images that share a generator."""
NOISE = f"blocks of {BLOCK}"
"""The name of this way to draw: images are only those of another run if that has the same."""


class ImageNoise:
    """Standard normal noise of images ``indices``, one draw after another.

    Images 16 b ... 16 b + 15 are block b, which has a generator of its own, seeded by (seed, "images", b), on the
    device. Every draw is made for the whole block, float32 (16, C, H, W), of which a batch takes its rows: so an image
    gets the same numbers in a batch of any size that starts anywhere. CPUs and GPUs give different numbers.
    """

    def __init__(self, seed: int, indices: range, shape: tuple[int, int, int], device: torch.device | str):
        """``indices``: consecutive, at least one; ``shape``: (C, H, W)."""
        blocks = range(indices.start // BLOCK, (indices.stop - 1) // BLOCK + 1)
        self.generators = [seeded_generator(seed, "images", block, device=device) for block in blocks]
        self.shape = shape
        self.first = indices.start - blocks.start * BLOCK
        self.count = len(indices)

    def draw(self) -> Tensor:
        """The next noise of each image, float32 (len(indices), C, H, W), on the device."""
        blocks = [
            torch.randn((BLOCK, *self.shape), generator=generator, device=generator.device)
            for generator in self.generators
        ]
        rows = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        if len(rows) == self.count:
            return rows
        return rows[self.first : self.first + self.count].clone()  # a view would keep all of the blocks
