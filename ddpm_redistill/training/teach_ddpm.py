"""``teach``: a DDPM teacher from images (Ho et al. 2020, arXiv 2006.11239), by the same loop as ``distill``."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from ..config import ClassificationConfig, PredictionType, TeachConfig, TrainingConfig
from ..core.losses import epsilon_of, noisy_of, task_loss
from ..errors import UserError
from ..pipelines.conditioning import Conditioning
from ..pipelines.seeds import seeded_generator
from ..sources.autoencoder import AutoencoderFolder, find_autoencoder, load_autoencoder
from ..sources.images import open_images
from ..sources.latent_images import side_of
from ..sources.model_folder import find_model
from ..sources.teacher import load_teacher
from .classes import classes_of_data
from .denoise import denoising
from .gradient import Batch, Objective
from .run import open_run
from .run_folder import settings_text
from .step_memory import StepMemory, teaching_memory

log = logging.getLogger("ddpm_redistill")

TAKEN = {
    "sample_size": "image_size",
    "in_channels": "channels",
    "out_channels": "channels",
    "num_class_embeds": "class_conditional",
}
"""Arguments of UNet2DModel that are not given in ``unet``, and the setting that each comes from."""


def teach_ddpm(
    config: TeachConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """``teach`` of a DDPM: its folder is a diffusers pipeline."""
    if config.classification != ClassificationConfig():
        raise UserError("classification is of classifiers, and no architecture of one is given: leave it out")
    if config.start:
        find_model(config.start)  # before the images are read, and a network is built
    run = open_run(config, resume=resume, anyway=resume_anyway)
    images = open_images(
        config.data,
        image_size=config.image_size,
        channels=config.channels,
        on_bad_image=config.on_bad_image,
        data_range=config.data_range,
    )
    if config.training.label_dropout is not None and not config.class_conditional:
        raise UserError("training.label_dropout is set, but class_conditional is not: leave one out or set the other")
    classes = classes_of_data(images, config.training) if config.class_conditional else None
    found = find_autoencoder(config.autoencoder) if config.autoencoder else None
    unet, scheduler = build_teacher(config, classes.conditioning if classes else None, found)
    vqvae = load_autoencoder(found) if found else None
    objective = noise_objective(scheduler, run.accelerator.device)

    def memory_of(training: TrainingConfig) -> StepMemory:
        where = {"processes": run.accelerator.num_processes, "device": run.accelerator.device}
        return teaching_memory(unet, objective, training, **where)

    config = replace(config, training=run.fitted(config.training, memory_of))
    run = run.settled(config)
    contents = {"data_sha256": images.fingerprint, **(classes.records() if classes else {})}
    contents |= found.records() if found else {}
    records = run.records({"data": images.description}, contents)
    log.info("%s\ndata: %s", settings_text(config), images.description)
    if dry_run:
        return None
    with run.begun(records):
        task = denoising(config, scheduler, images, classes, vqvae)
        return run.train(unet, task, images, lambda _: objective, {"task": 1.0}, "teacher")


def noise_objective(scheduler: DDPMScheduler, device: torch.device) -> Objective:
    """The loss of a network and a batch: the error of the noise that it predicts."""
    alphas_cumprod = scheduler.alphas_cumprod.to(device)

    def objective(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        timesteps, noise = batch["timesteps"], batch["noise"]
        abar = alphas_cumprod[timesteps]
        noisy = noisy_of(batch["images"], noise, abar)
        prediction = network(noisy, timesteps, batch.get("class_labels")).sample.float()
        epsilon = epsilon_of(prediction, noisy, abar, scheduler.config.prediction_type)
        return {"task": task_loss(epsilon, noise)}

    return objective


def build_teacher(
    config: TeachConfig, conditioning: Conditioning | None = None, autoencoder: AutoencoderFolder | None = None
) -> tuple[UNet2DModel, DDPMScheduler]:
    """A fresh network, of these classes and of the latents of this autoencoder, and schedule.

    Raises:
        UserError: arguments that diffusers does not take, or images that the autoencoder does not.
    """
    embeddings = conditioning.num_classes + (conditioning.null is not None) if conditioning else None
    side, channels = config.image_size, config.channels
    if autoencoder is not None:
        if config.horizontal_flip:
            raise UserError("horizontal_flip is of pixels, and this network learns latents: leave it out")
        if autoencoder.config["in_channels"] != channels:
            takes = autoencoder.config["in_channels"]
            raise UserError(f"channels is {channels}, and the autoencoder {autoencoder.ref} takes {takes}")
        side = side_of(config.image_size, None, autoencoder.pixels_per_latent)
        channels = autoencoder.config["latent_channels"]
    values = {"image_size": side, "channels": channels, "class_conditional": embeddings}
    taken = {key: values[setting] for key, setting in TAKEN.items()}
    for section, given, target in (("unet", config.unet, UNet2DModel), ("scheduler", config.scheduler, DDPMScheduler)):
        told = {key for key, value in given.items() if value is not None}
        for key in sorted(told & set(TAKEN)):
            raise UserError(f"{section}.{key} comes from {TAKEN[key]}: set that instead")
        unknown = set(given) - set(target._get_init_keys(target)) | (told & {"class_embed_type"})
        if unknown:
            raise UserError(f"{section}.{sorted(unknown)[0]} is not a setting here: see diffusers' {target.__name__}")
    # diffusers' own initialisation draws from the global random state.
    torch.manual_seed(seeded_generator(config.seed, "init").initial_seed())
    try:
        unet = UNet2DModel.from_config(json.loads(json.dumps({**config.unet, **taken})))
        scheduler = DDPMScheduler(**config.scheduler)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"diffusers refuses the unet or scheduler of this config: {error}") from error
    if scheduler.config.num_train_timesteps < 1:
        raise UserError(f"scheduler.num_train_timesteps must be at least 1, not {scheduler.config.num_train_timesteps}")
    if scheduler.config.prediction_type not in get_args(PredictionType):
        raise UserError(f"scheduler.prediction_type must be one of {', '.join(get_args(PredictionType))}")
    strided = sum(bool(block.downsamplers) for block in unet.down_blocks)
    if side % 2**strided:
        need, what = f"as {strided} down-samplers need", "image_size" if autoencoder is None else "the latents' side,"
        raise UserError(f"{what} {side} does not divide by {2**strided}, {need}")
    if config.start:
        _start_from(config.start, unet, scheduler, conditioning)
    return unet, scheduler


def _start_from(ref: str, unet: UNet2DModel, scheduler: DDPMScheduler, conditioning: Conditioning | None) -> None:
    """Load the weights of a pretrained DDPM. Of one without classes all but the class embeddings: these keep their
    random values, since from zero they learn next to nothing in thousands of steps, but for the null class, which
    becomes zero: with it the network computes what the other one did.

    Raises UserError naming what differs, where equal shapes might hide it.
    """
    teacher = load_teacher(ref)
    new_classes = conditioning is not None and teacher.unet.config.num_class_embeds is None
    if type(teacher.unet) is not UNet2DModel:
        raise UserError(f"start: {ref} is a student, give a UNet2DModel: distill goes on from students")
    for theirs, ours, keys in (
        (teacher.unet.config, unet.config, unet.config.keys() - {"sample_size", "num_class_embeds" * new_classes}),
        (teacher.scheduler.config, scheduler.config, {"prediction_type", "num_train_timesteps"}),
    ):
        for key in sorted(key for key in keys if not key.startswith("_")):
            was, now = (list(value) if isinstance(value, tuple) else value for value in (theirs[key], ours[key]))
            if was != now:
                raise UserError(f"start: {ref} has {key} {was}, and this config {now}: say the same in the config")
    if conditioning is not None and teacher.id2label not in (None, conditioning.id2label):
        raise UserError(f"start: {ref} has other classes than the data: {', '.join(teacher.id2label.values())[:200]}")
    state = dict(teacher.unet.state_dict())
    if new_classes:
        state["class_embedding.weight"] = unet.class_embedding.weight.detach().clone()
        if conditioning is not None and conditioning.null is not None:
            state["class_embedding.weight"][conditioning.null] = 0
    unet.load_state_dict(state)
