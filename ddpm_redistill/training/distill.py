"""``distill``: teacher -> plan -> student -> training against the frozen teacher -> a diffusers pipeline folder."""

import json
import logging
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler

from ..config import LOSS_TERMS, DistillConfig, resolve
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..provenance import environment
from ..sources.images import open_images
from ..sources.teacher import Teacher, load_teacher
from ..students.derive import derive_student
from ..students.plan import plan_student
from .disk import on_main
from .draws import Draws
from .loop import make_accelerator, train
from .objective import check_terms, distillation_objective, make_regressors
from .run_folder import RunFolder, settings_text, write_pipeline

log = logging.getLogger("ddpm_redistill")


def distill(
    config: DistillConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """Derive a student and train it; returns its pipeline folder, ``output_dir/student``, or None for a dry run.

    Args:
        resume: go on from the newest checkpoint that is intact.
        resume_anyway: the same, and the settings that are safe to change (``same_run``) may differ.

    Raises:
        UserError: a mistake in the config, the teacher, the data or the output folder, before any work; or the disk
            refused what is to be written.
        Stopped: SIGTERM or Ctrl-C during the training, after a checkpoint; a SystemExit.
    """
    # 1. what was asked for, checked
    config = resolve(config)
    run = RunFolder(config.output_dir)
    resume = resume or resume_anyway
    run.check(config, resume=resume, anyway=resume_anyway)
    teacher = load_teacher(config.teacher)
    size = config.image_size or teacher.unet.config.sample_size
    plan = plan_student({**teacher.unet.config, "sample_size": size}, config.student)
    channels = teacher.unet.config.in_channels
    images = open_images(config.data, image_size=size, channels=channels, on_bad_image=config.on_bad_image)
    accelerator = make_accelerator(config.training, run)
    places = {"teacher": teacher.ref, "data": images.description}
    contents = {
        "teacher_sha256": teacher.sha256,
        "teacher_config": describe(teacher),
        "data_sha256": images.fingerprint,
    }
    if resume:
        run.check_records({"plan.json": plan.to_dict(), "provenance.json": contents})
    records = {"plan.json": plan.to_dict(), "provenance.json": {**places, **contents, **environment()}}
    parts = accelerator.num_processes * config.training.gradient_accumulation
    check_terms(config.loss, plan, config.training.batch_size // parts)
    log.info("%s\nplan: %s\ndata: %s", settings_text(config), plan, images.description)
    if dry_run:
        return None
    log.info("running %d process(es) on %s", accelerator.num_processes, accelerator.device)
    with run.begun(config, records, accelerator, resume=resume, anyway=resume_anyway):
        # 2. the student, and the loss against its teacher
        student = derive_student(teacher.unet, plan, seed=config.seed)
        teacher.unet.to(accelerator.device)
        objective = distillation_objective(teacher, student, plan, config.loss, accelerator.device)
        regressors = make_regressors(config.loss, plan, config.seed)
        weights = {name: float(getattr(config.loss, name)) for name in LOSS_TERMS}
        draws = Draws(
            images,
            seed=config.seed,
            batch_size=config.training.batch_size,
            num_train_timesteps=teacher.scheduler.config.num_train_timesteps,
            horizontal_flip=config.horizontal_flip,
        )
        scheduler = DDPMScheduler.from_config(teacher.scheduler.config, prediction_type=plan.prediction_type)
        sampler = RedDDPMPipeline(student, scheduler).set_scheduler("ddim")
        sampler.set_progress_bar_config(disable=True)

        # 3. training, and the folder that opens in diffusers
        train(
            student,
            objective,
            weights,
            draws,
            sampler,
            config.training,
            run,
            accelerator,
            resume=resume,
            loss_modules=regressors,
        )
        on_main(accelerator, lambda: write_pipeline(RedDDPMPipeline(student, scheduler), run.path / "student"))
        log.info("student written to %s", run.path / "student")
        accelerator.end_training()  # ends the process group too: nothing may wait after it
    return run.path / "student"


def describe(teacher: Teacher) -> dict[str, Any]:
    """The settings of a teacher's network and noise schedule, as JSON: with its weights, all that it is."""
    both = {"unet": teacher.unet.config, "scheduler": teacher.scheduler.config}
    given = {part: {key: value for key, value in config.items() if key[0] != "_"} for part, config in both.items()}
    return json.loads(json.dumps(given))
