"""Augmentation and normalisation of a batch of images; what is random is drawn before and given as tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4
"""Pixels of black around an image before it is cropped (He et al. 2016, arXiv 1512.03385, section 4.2)."""
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of a random resized crop: its share of the image's area, and its width over its height (Szegedy et al. 2015, arXiv
1409.4842, section 6; torchvision's defaults)."""
TRIES = 10
"""Boxes that are drawn for an image; of those that fit into it the first is taken, else the whole image."""


def flipped(images: Tensor, flips: Tensor) -> Tensor:
    """(B, C, H, W), those flipped left to right whose flag in bool (B,) is set; by whole rows, which on a CPU is three
    times as fast as choosing between pixels."""
    rows = torch.arange(len(images), device=images.device) + flips * len(images)
    return torch.cat([images, images.flip(-1)]).index_select(0, rows)


def padded_crop(images: Tensor, offsets: Tensor) -> Tensor:
    """Pad by ``PADDING`` zeros on each side and cut the size out again: uint8 (B, C, H, W) -> the same shape.

    offsets: int64 (B, 2), of the first row and column in the padded image, 0 to 2 * PADDING.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, [PADDING] * 4)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    shape = (len(images), images.shape[1], height, padded.shape[-1])
    padded = padded.gather(2, rows[:, None, :, None].expand(shape))
    return padded.gather(3, columns[:, None, None, :].expand(*shape[:3], width))


def random_boxes(count: int, side: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Boxes of random resized crops of square images: int64 (count, 4), first row, first column, height, width."""

    def uniform(least: float, most: float) -> Tensor:
        return least + (most - least) * torch.rand(count, TRIES, generator=generator, device=device)

    areas, ratios = side * side * uniform(*AREA), uniform(math.log(RATIO[0]), math.log(RATIO[1])).exp()
    sizes = torch.stack([(areas / ratios).sqrt(), (areas * ratios).sqrt()], 2).round()  # (count, TRIES, 2)
    fits = ((sizes >= 1) & (sizes <= side)).all(2)
    chosen = sizes[torch.arange(count, device=device), fits.int().argmax(1)]
    chosen = torch.where(fits.any(1, keepdim=True), chosen, float(side))
    room = side - chosen
    corners = (torch.rand(count, 2, generator=generator, device=device) * (room + 1)).floor().minimum(room)
    return torch.cat([corners, chosen], 1).long()


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut each image's box out and resize it to the image's size (bilinear, antialiased): uint8 (B, C, H, W) -> the
    same shape.

    boxes: int64 (B, 4), as ``random_boxes`` has them.
    """
    size = images.shape[-2:]
    cut = []
    for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        box = image[None, :, top : top + height, left : left + width].float()
        cut.append(F.interpolate(box, size, mode="bilinear", antialias=True))
    return torch.cat(cut).round_().clamp_(0, 255).to(torch.uint8)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (pixel / 255 - mean) / std; ``mean`` and ``std`` of each channel."""
    shape, device = (1, -1, 1, 1), images.device
    centre, spread = (torch.tensor(values, device=device).view(shape) * 255 for values in (mean, std))
    return images.float().sub_(centre).div_(spread)
