"""Images to latents and back by the frozen autoencoder of a latent diffusion model (Rombach et al. 2022, arXiv
2112.10752). Its denoiser is an ordinary ``UNet2DModel``, of latents instead of pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

Autoencoder = VQModel | AutoencoderKL
AUTOENCODERS: dict[str, Any] = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}


def pixels_per_latent(config: Mapping[str, Any]) -> int:
    """How many pixels a side one latent stands for: each level of the encoder but the last halves the resolution."""
    return 2 ** (len(config["block_out_channels"]) - 1)


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """float32 (B, C, H, W) in [-1, 1] -> float32 latents (B, Z, H / f, W / f), times the scaling factor of the
    autoencoder's config. Of an ``AutoencoderKL`` the mean of its distribution, so that an image has one latent."""
    encoded = autoencoder.encode(images.to(_parameter(autoencoder)))
    latents = encoded.latents if isinstance(autoencoder, VQModel) else encoded.latent_dist.mode()
    return latents.float() * autoencoder.config.scaling_factor


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Inverse of ``encode``: float32 (B, Z, H / f, W / f) -> float32 (B, C, H, W), nominally in [-1, 1].

    One image at a time: a decoder works at full resolution, where a batch would take far more memory than the denoiser.
    """
    scaled = latents.to(_parameter(autoencoder)) / autoencoder.config.scaling_factor
    return torch.cat([autoencoder.decode(latent[None]).sample.float() for latent in scaled])


def _parameter(module: nn.Module) -> Tensor:
    """Any of its parameters, for device and dtype."""
    return next(module.parameters())
