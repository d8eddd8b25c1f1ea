"""What a classifier says of a source of images."""

from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from ..core.augment import normalised
from .image_source import ImageSource

AT_ONCE = 64
"""Images; a constant, so that logits do not depend on the batch size of a run."""


@torch.no_grad()
def logits_of(
    network: nn.Module, images: ImageSource, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> torch.Tensor:
    """The logits of all images in their order, float32 (N, K) on the CPU.

    Args:
        network: normalised images (B, C, H, W) -> logits (B, K); on ``device``, in evaluation mode.
        mean, std: of each channel, as ``normalised`` takes them.
    """
    found = []
    with tqdm(total=len(images), desc="classifying", unit="image", delay=2, leave=False) as bar:
        for start in range(0, len(images), AT_ONCE):
            batch = torch.stack([images[index] for index in range(start, min(start + AT_ONCE, len(images)))])
            found.append(network(normalised(batch.to(device), mean, std)).float().cpu())
            bar.update(len(batch))
    return torch.cat(found)
