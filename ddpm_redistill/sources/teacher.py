"""Networks that come in: a folder, a hub id or a built-in one -> checked, loaded from safetensors, and frozen."""

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import safe_open

from ..errors import UserError
from ..pipelines.latents import Autoencoder, pixels_per_latent
from ..pipelines.modeling_red_unet import CODE_VERSION
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from .autoencoder import load_autoencoder
from .image_files import one_line
from .model_folder import NETWORKS, ModelFolder, check_weights_file, find_model

__all__ = ["ModelFolder", "Teacher", "find_model", "load_pipeline", "load_teacher", "sha256_of"]

log = logging.getLogger("ddpm_redistill")

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Teacher:
    """A frozen network in eval mode, its noise schedule, where it came from and the sha256 of its weights.

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
    autoencoder_sha256: str | None = None

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
    _check_size(model)
    network = NETWORKS[model.network_class]
    try:
        # output_loading_info: diffusers would only warn about keys that are missing or left over.
        unet, info = network.from_pretrained(
            model.unet,
            variant=model.variant,
            torch_dtype=torch.float32,
            use_safetensors=True,
            disable_mmap=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # a config of any kind meets a file of any kind: the folder is the cause
        raise UserError(f"the weights of {ref} cannot be loaded: {one_line(error)}") from error
    wrong = info["missing_keys"] + info["unexpected_keys"] + [str(key) for key in info["mismatched_keys"]]
    if wrong:
        raise UserError(f"the weights of {ref} are not of its config: {len(wrong)} tensors differ, first {wrong[0]}")
    bad = next((name for name, value in unet.state_dict().items() if not value.isfinite().all()), None)
    if bad is not None:
        raise UserError(f"the weights of {ref} hold values that are not finite, first in {bad}: the model is damaged")
    if model.code_version not in (None, CODE_VERSION):
        log.warning(
            "%s carries code of version %s, which is not run: it is opened by this package's, %s. Should it make other"
            " images than its card shows, open it in diffusers with trust_remote_code=True",
            *(ref, model.code_version, CODE_VERSION),
        )
    classes: dict[str, Any] = {"id2label": model.id2label, "learned_guidance": model.learned_guidance}
    vqvae = load_autoencoder(model.autoencoder) if model.autoencoder else None
    return RedDDPMPipeline(unet.eval(), load_scheduler(model), lean, **classes, vqvae=vqvae)


def load_teacher(ref: str) -> Teacher:
    """A frozen teacher in eval mode; a student is one too, its RED blocks included.

    Raises:
        UserError: as ``load_pipeline``; or the weights change meanwhile.
    """
    model = find_model(ref)
    sha256 = sha256_of(model.weights) if model.weights.is_file() else None  # which load_pipeline refuses
    pipeline = load_pipeline(ref)
    if sha256_of(model.weights) != sha256:
        raise UserError(f"the weights of {ref} changed while they were read: start again when they are at rest")
    pipeline.unet.requires_grad_(False)
    autoencoder_sha256 = sha256_of(model.autoencoder.weights) if model.autoencoder else None
    return Teacher(
        *(pipeline.unet, pipeline.scheduler, ref, sha256, model.id2label, model.learned_guidance),
        vqvae=pipeline.vqvae,
        autoencoder_sha256=autoencoder_sha256,
    )


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_size(model: ModelFolder) -> None:
    """Raises UserError when the weights cannot be read, or the config tells of a much larger network than they are:
    memory for it would be asked for before the two are compared."""
    try:
        with safe_open(model.weights, "pt") as file:  # reads and checks the header
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        with torch.device("meta"):
            network = NETWORKS[model.network_class].from_config(model.config)
    except Exception as error:  # as in load_pipeline
        raise UserError(f"the weights of {model.ref} cannot be loaded: {one_line(error)}") from error
    there = sum(math.prod(shape) for shape in shapes)
    needed = sum(value.numel() for value in network.state_dict().values())
    if needed > 2 * there:
        raise UserError(
            f"the weights of {model.ref} are not of its config: it tells of {needed:,} values, they are {there:,}"
        )


def load_scheduler(model: ModelFolder) -> DDPMScheduler:
    """The DDPM noise schedule that the model was trained with; the sampler is chosen later."""
    if not model.scheduler:
        return DDPMScheduler()
    try:
        scheduler = DDPMScheduler.from_config(model.scheduler)
        kept = scheduler.alphas_cumprod  # the share of the image that is left at each timestep
        if not kept.isfinite().all() or kept.min() < 0 or kept.max() > 1:
            raise ValueError("its betas leave the range from 0 to 1")
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"its prediction_type is {scheduler.config.prediction_type}")
        if scheduler.config.variance_type.startswith("learned"):
            raise ValueError("its variance is learned, which is not supported")
    except (TypeError, ValueError, IndexError, RuntimeError) as error:  # diffusers' NotImplementedError too
        raise UserError(f"the scheduler of {model.ref} is no DDPM noise schedule: {one_line(error)}") from error
    return scheduler
