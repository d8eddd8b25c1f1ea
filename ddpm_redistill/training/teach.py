"""``teach``: a DDPM teacher from images (Ho et al. 2020, arXiv 2006.11239), by the same loop as ``distill``."""

import json
import logging
from pathlib import Path
from typing import get_args

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from ..config import PredictionType, TeachConfig
from ..core.losses import epsilon_of, noisy_of, task_loss
from ..errors import UserError
from ..pipelines.seeds import seeded_generator
from ..sources.images import open_images
from ..sources.teacher import load_teacher
from .gradient import Batch
from .run import open_run
from .run_folder import settings_text

log = logging.getLogger("ddpm_redistill")


def teach(
    config: TeachConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """Train a teacher; returns its folder, ``output_dir/teacher`` (EMA weights), or None for a dry run.

    ``resume`` and ``resume_anyway`` as in ``distill``.

    Raises:
        UserError: a mistake in the config, the data or the output folder, before any work; or the disk refused what
            is to be written.
        Stopped: SIGTERM or Ctrl-C during the training, after a checkpoint; a SystemExit.
    """
    run = open_run(config, resume=resume, anyway=resume_anyway)
    size, channels, on_bad_image = config.image_size, config.channels, config.on_bad_image
    images = open_images(config.data, image_size=size, channels=channels, on_bad_image=on_bad_image)
    unet, scheduler = build_teacher(config)
    records = run.records({"data": images.description}, {"data_sha256": images.fingerprint})
    log.info("%s\ndata: %s", settings_text(config), images.description)
    if dry_run:
        return None
    with run.begun(records):
        alphas_cumprod = scheduler.alphas_cumprod.to(run.accelerator.device)

        def objective(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            timesteps, noise = batch["timesteps"], batch["noise"]
            abar = alphas_cumprod[timesteps]
            noisy = noisy_of(batch["images"], noise, abar)
            prediction = network(noisy, timesteps).sample.float()
            epsilon = epsilon_of(prediction, noisy, abar, scheduler.config.prediction_type)
            return {"task": task_loss(epsilon, noise)}

        return run.train(unet, scheduler, lambda _: objective, {"task": 1.0}, images, "teacher")


def build_teacher(config: TeachConfig) -> tuple[UNet2DModel, DDPMScheduler]:
    """A fresh network and schedule. Raises UserError for arguments that diffusers does not take."""
    taken = {"sample_size": config.image_size, "in_channels": config.channels, "out_channels": config.channels}
    for section, given, target in (("unet", config.unet, UNet2DModel), ("scheduler", config.scheduler, DDPMScheduler)):
        unknown = set(given) - set(target._get_init_keys(target)) | (set(given) & set(taken))
        if unknown:
            raise UserError(f"{section}.{sorted(unknown)[0]} is not a setting here: see diffusers' {target.__name__}")
    # diffusers' own initialisation draws from the global random state.
    torch.manual_seed(seeded_generator(config.seed, "init").initial_seed())
    try:
        unet = UNet2DModel.from_config(json.loads(json.dumps({**config.unet, **taken})))
        scheduler = DDPMScheduler(**config.scheduler)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"diffusers refuses the unet or scheduler of this config: {error}") from error
    if unet.class_embedding is not None:
        raise UserError("the unet of this config is class-conditional, and nothing here is trained on labels yet")
    if scheduler.config.num_train_timesteps < 1:
        raise UserError(f"scheduler.num_train_timesteps must be at least 1, not {scheduler.config.num_train_timesteps}")
    if scheduler.config.prediction_type not in get_args(PredictionType):
        raise UserError(f"scheduler.prediction_type must be one of {', '.join(get_args(PredictionType))}")
    strided = sum(bool(block.downsamplers) for block in unet.down_blocks)
    if config.image_size % 2**strided:
        need = f"as {strided} down-samplers need"
        raise UserError(f"image_size {config.image_size} does not divide by {2**strided}, {need}")
    if config.start:
        _start_from(config.start, unet, scheduler)
    return unet, scheduler


def _start_from(ref: str, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
    """Load the weights of a pretrained DDPM. Raises UserError naming what differs, where equal shapes might hide it."""
    teacher = load_teacher(ref)
    if type(teacher.unet) is not UNet2DModel:
        raise UserError(f"start: {ref} is a student, give a UNet2DModel: distill goes on from students")
    for theirs, ours, keys in (
        (teacher.unet.config, unet.config, unet.config.keys() - {"sample_size"}),
        (teacher.scheduler.config, scheduler.config, {"prediction_type", "num_train_timesteps"}),
    ):
        for key in sorted(key for key in keys if not key.startswith("_")):
            was, now = (list(value) if isinstance(value, tuple) else value for value in (theirs[key], ours[key]))
            if was != now:
                raise UserError(f"start: {ref} has {key} {was}, and this config {now}: say the same in the config")
    unet.load_state_dict(teacher.unet.state_dict())
