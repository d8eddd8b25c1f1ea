"""A classifier trained from labels."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from ..config import TeachConfig, TrainingConfig
from ..errors import UserError
from ..families.classifier_files import build, build_on_meta, find_config, load_classifier
from ..pipelines.seeds import seeded_generator
from .batch_norm import batch_norm_record
from .classify import check_training, classifying, labelled_images, source_opener, teaching_objective
from .run import open_run
from .run_folder import settings_text
from .step_memory import StepMemory, classification_memory

log = logging.getLogger("ddpm_redistill")

OF_DDPMS = ("unet", "scheduler", "class_conditional", "autoencoder")
"""Settings that a classifier has not."""


def teach_classifier(
    config: TeachConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """``teach`` of a classifier."""
    # 1. what was asked for, checked
    for name in OF_DDPMS:
        if getattr(config, name):
            raise UserError(
                f"{name} is of a DDPM, and architecture names a classifier, {config.architecture}: give one"
            )
    check_training(config.training)
    architecture = str(config.architecture)
    find_config(architecture)  # before the images are read
    run = open_run(config, resume=resume, anyway=resume_anyway)
    open_source = source_opener(config, config.image_size, config.channels)
    data = labelled_images(open_source(config.data), config.classification, config.seed, open_source)
    asked = find_config(
        architecture, image_size=config.image_size, num_classes=len(data.names), in_channels=config.channels
    )
    asked = replace(asked, classes=data.names)
    if config.start is not None:
        started, given = load_classifier(config.start)
        if replace(given, classes=data.names, image_size=asked.image_size) != asked:
            raise UserError(f"start: {config.start} is {given}, and this config asks for {asked}")

    def memory_of(training: TrainingConfig) -> StepMemory:
        where = {"processes": run.accelerator.num_processes, "device": run.accelerator.device}
        shape = (asked.in_channels, asked.image_size, asked.image_size)
        return classification_memory(lambda: build(asked), training, shape, **where)

    config = replace(config, training=run.fitted(config.training, memory_of))
    run = run.settled(config)
    contents = {**data.records(), **batch_norm_record(build_on_meta(asked), config.training)}
    records = run.records({"data": data.images.description}, contents)
    log.info("%s\nnetwork: %s\ndata: %s", settings_text(config), asked, data)
    if dry_run:
        return None
    with run.begun(records):
        # 2. the network, and its training
        torch.manual_seed(seeded_generator(config.seed, "init").initial_seed())
        network = build(asked)
        if config.start is not None:
            network.load_state_dict(started.state_dict())
        task = classifying(config, asked, data)
        return run.train(network, task, data.images, lambda _: teaching_objective, {"task": 1.0}, "teacher")
