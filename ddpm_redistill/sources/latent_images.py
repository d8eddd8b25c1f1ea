"""Images encoded once: what a network of latents is trained on."""

import hashlib
import logging
from typing import Any

import torch
from tqdm import tqdm

from ..errors import UserError
from ..pipelines.latents import Autoencoder, encode, pixels_per_latent
from .image_source import ImageSource

log = logging.getLogger("ddpm_redistill")

SPREAD = (0.2, 5.0)
"""Standard deviations of latents that are not warned of."""
ENCODED_AT_ONCE = 16
"""Images; a constant, so that latents do not depend on the batch size of a run."""


def encoded(images: ImageSource, autoencoder: Autoencoder, device: torch.device) -> ImageSource:
    """The latents of all images, float32 (Z, H / f, W / f) each, held in memory, with the labels of the images."""
    size, channels = images[0].shape[-1], autoencoder.config.latent_channels
    side = size // pixels_per_latent(autoencoder.config)
    latents = torch.empty(len(images), channels, side, side)
    home = next(autoencoder.parameters()).device
    autoencoder.to(device)
    with tqdm(total=len(images), desc="encoding", unit="image", delay=1) as bar:
        for start in range(0, len(images), ENCODED_AT_ONCE):
            indices = range(start, min(start + ENCODED_AT_ONCE, len(images)))
            batch = torch.stack([images[index] for index in indices]).to(device)
            latents[start : indices.stop] = encode(autoencoder, batch.float().div_(127.5).sub_(1)).cpu()
            bar.update(len(indices))
    autoencoder.to(home)
    if not latents.isfinite().all():
        raise UserError(f"the autoencoder makes values that are not finite of {images.description}")
    deviation = latents.std().item()
    if not SPREAD[0] < deviation < SPREAD[1]:
        log.warning(
            "the latents of %s have a standard deviation of %.3g, and noise schedules are made for about 1: look at"
            " scaling_factor in the config of the autoencoder",
            *(images.description, deviation),
        )
    digest = hashlib.sha256(images.fingerprint.encode() + latents.numpy().tobytes()).hexdigest()
    source = ImageSource(len(images), latents, f"latents of {images.description}", digest)
    source.labels, source.classes = images.labels, images.classes
    return source


def side_of(image_size: int | None, sample_size: Any, pixels: int) -> Any:
    """The side of what the network denoises, for images of ``image_size`` pixels a side.

    Args:
        image_size: as a person asked for; None takes the network's own ``sample_size``, as its config has it.
        pixels: that one latent stands for, 1 where the network denoises pixels.

    Raises:
        UserError: a number of pixels that is not a whole number of latents.
    """
    if image_size is None:
        return sample_size
    if image_size % pixels:
        raise UserError(f"image_size {image_size} does not divide by {pixels}, the pixels a side of one latent")
    return image_size // pixels
