"""Networks that come in: a folder, a hub id or a built-in one -> checked, loaded from safetensors, and frozen."""

import logging
from dataclasses import dataclass, field
from typing import Any

from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from ..errors import UserError
from ..pipelines.latents import Autoencoder, pixels_per_latent
from ..pipelines.modeling_red_unet import CODE_VERSION
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from .autoencoder import load_autoencoder
from .model_folder import NETWORKS, ModelFolder, check_weights_file, find_model
from .noise_schedule import noise_schedule
from .weights import load_network, sha256_of

__all__ = ["ModelFolder", "Teacher", "find_model", "load_pipeline", "load_teacher", "sha256_of"]

log = logging.getLogger("ddpm_redistill")

MEAN_AND_VARIANCE = ("conv_out.weight", "conv_out.bias")
"""What makes the two halves of the output of a network that predicts its variance too."""


@dataclass(frozen=True)
class Teacher:
    """A frozen network in eval mode, its noise schedule, where it came from and the sha256 of its weights' files.

    ``id2label`` and ``learned_guidance`` of a class-conditional network, and ``vqvae`` of one of latents: as
    ``RedDDPMPipeline``.
    """

    unet: UNet2DModel
    scheduler: DDPMScheduler
    ref: str
    sha256: str
    id2label: dict[str, str] | None = None
    learned_guidance: float | None = None
    vqvae: Autoencoder | None = None
    autoencoder_records: dict[str, Any] = field(default_factory=dict)
    """As ``AutoencoderFolder.records``; empty of a network of pixels."""

    @property
    def image_channels(self) -> int:
        """Of the images that it learns, encoded or not."""
        return int((self.unet if self.vqvae is None else self.vqvae).config.in_channels)

    @property
    def pixels_per_latent(self) -> int:
        """A side; 1 of a network of pixels."""
        return 1 if self.vqvae is None else pixels_per_latent(self.vqvae.config)


def load_pipeline(ref: str, *, lean: bool | str = False) -> RedDDPMPipeline:
    """A pipeline of the model, teacher or student, in float32 whatever the weights were saved in, with DDPM sampling
    over its own noise schedule.

    Args:
        lean: run the network lean, as ``RedDDPMPipeline``.

    Raises:
        UserError: as ``find_model``, or the weights are missing, pickled, damaged, or not of this network.
    """
    model = find_model(ref)
    check_weights_file(model)
    model.say()
    change = _means if model.drops_variance else dict
    unet = load_network(ref, NETWORKS[model.network_class], model.config, model.weights, change)
    if model.code_version not in (None, CODE_VERSION):
        log.warning(
            "%s carries code of version %s, which is not run: it is opened by this package's, %s. Should it make other"
            " images than its card shows, open it in diffusers with trust_remote_code=True",
            *(ref, model.code_version, CODE_VERSION),
        )
    classes: dict[str, Any] = {"id2label": model.id2label, "learned_guidance": model.learned_guidance}
    vqvae = load_autoencoder(model.autoencoder) if model.autoencoder else None
    return RedDDPMPipeline(unet, noise_schedule(ref, model.scheduler), lean, **classes, vqvae=vqvae)


def load_teacher(ref: str) -> Teacher:
    """A frozen teacher in eval mode; a student is one too, its RED blocks included.

    Raises:
        UserError: as ``load_pipeline``; or the weights change meanwhile.
    """
    model = find_model(ref)
    check_weights_file(model)
    sha256 = sha256_of(*model.weights)
    pipeline = load_pipeline(ref)
    if sha256_of(*model.weights) != sha256:
        raise UserError(f"the weights of {ref} changed while they were read: start again when they are at rest")
    pipeline.unet.requires_grad_(False)
    return Teacher(
        *(pipeline.unet, pipeline.scheduler, ref, sha256, model.id2label, model.learned_guidance),
        vqvae=pipeline.vqvae,
        autoencoder_records=model.autoencoder.records() if model.autoencoder else {},
    )


def _means(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a network that predicts its variance too: without the second half of what makes its output."""
    halves = {name: tensors[name] for name in MEAN_AND_VARIANCE if name in tensors}
    return {**tensors, **{name: tensor[: len(tensor) // 2] for name, tensor in halves.items()}}
