"""Memory of the decoder of a latent diffusion model, told apart from the denoiser's: it can be the larger peak."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.peak import tensor_peak_within
from ..pipelines.latents import AUTOENCODERS, Autoencoder


class _Decoder(nn.Module):
    """The decoding half of an autoencoder, as a module of its own."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample


def decoder_memory(config: Mapping[str, Any], side: int) -> dict[str, int]:
    """Bytes: ``decoder_peak``, the tensor_peak of decoding one image in float32, and ``autoencoder_weights``, of both
    halves.

    Args:
        config: of the autoencoder, with ``_class_name``.
        side: latents a side.
    """
    with torch.device("meta"):
        autoencoder = AUTOENCODERS[config["_class_name"]].from_config(dict(config)).eval()
    latents = torch.empty(1, config["latent_channels"], side, side, device="meta")
    peak, _ = tensor_peak_within(_Decoder(autoencoder), (latents,), float("inf"))
    weights = sum(value.nbytes for value in autoencoder.state_dict().values())
    return {"decoder_peak": peak, "autoencoder_weights": weights}
