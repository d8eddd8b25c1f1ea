"""The student of a DDPM, trained against it."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler

from ..config import LOSS_TERMS, ClassificationConfig, DistillConfig, TrainingConfig
from ..errors import UserError
from ..recipes import resolve
from ..sources.image_source import ImageSource
from ..sources.images import open_images
from ..sources.latent_images import side_of
from ..sources.saturation import SATURATED, saturated_share
from ..sources.teacher import Teacher, load_teacher
from ..students.derive import derive_student
from ..students.plan import plan_student
from .classes import classes_of_teacher
from .comparison import alignment, check_terms, comparing, feature_terms, make_regressors
from .denoise import denoising
from .gradient import place
from .objective import objective_of_steps
from .run import open_run
from .run_folder import settings_text
from .step_memory import StepMemory, distillation_memory

log = logging.getLogger("ddpm_redistill")

LATENTS_RECIPE = ("natural", "\nrecipe: natural, since the network learns latents, which have no ends of a range")


def distill_ddpm(
    config: DistillConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """``distill`` of a DDPM: the student's folder is a diffusers pipeline."""
    # 1. what was asked for, checked
    asked, config = config, resolve(config)
    if config.classification != ClassificationConfig():
        raise UserError(f"classification is of classifiers, and {config.teacher} is a DDPM: leave it out")
    if config.loss.temperature is not None:
        raise UserError("loss.temperature is set, which softens the logits of a classifier: leave it out")
    run = open_run(config, resume=resume, anyway=resume_anyway)
    teacher = load_teacher(config.teacher)
    side = side_of(config.image_size, teacher.unet.config.sample_size, teacher.pixels_per_latent)
    # before the images, which may choose the recipe: natural and saturated have one student
    plan = plan_student({**teacher.unet.config, "sample_size": side}, config.student)
    if teacher.vqvae is not None and config.horizontal_flip:
        raise UserError("horizontal_flip is of pixels, and this teacher learns latents: leave it out")
    images = open_images(
        config.data,
        image_size=plan.sample_size * teacher.pixels_per_latent,
        channels=teacher.image_channels,
        on_bad_image=config.on_bad_image,
        data_range=config.data_range,
    )
    why = ""
    if asked.recipe == "default":
        name, why = default_recipe(images) if teacher.vqvae is None else LATENTS_RECIPE
        config = resolve(asked, name)
    classes = classes_of_teacher(images, teacher, config)
    null = classes.conditioning.null if classes else None

    def memory_of(training: TrainingConfig) -> StepMemory:
        where = {"processes": run.accelerator.num_processes, "device": run.accelerator.device}
        return distillation_memory(
            dict(teacher.unet.config), teacher.scheduler, plan, config.loss, training, null=null, **where
        )

    config = replace(config, training=run.fitted(config.training, memory_of))
    run = run.settled(config)
    aligned = alignment(teacher.unet.config, plan, str(config.loss.feature_places))
    parts = run.accelerator.num_processes * config.training.gradient_accumulation
    check_terms(config.loss, aligned, config.training.global_batch // parts)
    places = {"teacher": teacher.ref, "data": images.description}
    contents = {
        "teacher_sha256": teacher.sha256,
        "teacher_config": describe(teacher),
        "data_sha256": images.fingerprint,
        **teacher.autoencoder_records,
        **(classes.records() if classes else {}),
    }
    records = run.records(places, contents, plan.to_dict())
    log.info("%s\nplan: %s\ndata: %s%s", settings_text(config), plan, images.description, why)
    if dry_run:
        return None
    with run.begun(records):
        # 2. the student, and the loss against its teacher
        student = derive_student(teacher.unet, plan, seed=config.seed)
        place(teacher.unet, config.training, run.accelerator.device)
        regressors = make_regressors(config.loss, aligned, config.seed)
        weights = {name: float(getattr(config.loss, name)) for name in LOSS_TERMS}
        scheduler = DDPMScheduler.from_config(teacher.scheduler.config, prediction_type=plan.options.prediction_type)

        # 3. training, and the folder that opens in diffusers
        with comparing(teacher.unet, student, aligned if feature_terms(config.loss) else ()) as compared:
            steps, device = config.training.steps, run.accelerator.device
            objective_at = objective_of_steps(teacher, plan, config.loss, compared, steps, device, null)
            task = denoising(config, scheduler, images, classes, teacher.vqvae)
            return run.train(student, task, images, objective_at, weights, "student", loss_modules=regressors)


def default_recipe(images: ImageSource) -> tuple[str, str]:
    """The recipe that these images call for, and a line on why, after a line break."""
    share = saturated_share(images)
    name = "saturated" if share >= SATURATED else "natural"
    return name, (
        f"\nrecipe: {name}, since {share:.0%} of the pixel values are at an end of the range (saturated: from"
        f" {SATURATED:.0%})"
    )


def describe(teacher: Teacher) -> dict[str, Any]:
    """The settings of a teacher's network and noise schedule, as JSON: with its weights, all that it is."""
    both = {"unet": teacher.unet.config, "scheduler": teacher.scheduler.config}
    given = {part: {key: value for key, value in config.items() if key[0] != "_"} for part, config in both.items()}
    return json.loads(json.dumps(given))
