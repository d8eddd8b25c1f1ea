"""``distill``: teacher -> plan -> student -> training against the frozen teacher -> a diffusers pipeline folder."""

import logging
from pathlib import Path

from diffusers import DDPMScheduler

from ..config import LOSS_TERMS, DistillConfig, resolve
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..provenance import environment
from ..sources.images import open_images
from ..sources.teacher import load_teacher
from ..students.derive import derive_student
from ..students.plan import plan_student
from .draws import Draws
from .loop import make_accelerator, train
from .objective import check_terms, distillation_objective, make_regressors
from .run_folder import RunFolder, settings_text, write_pipeline

log = logging.getLogger("ddpm_redistill")


def distill(config: DistillConfig, *, resume: bool = False, dry_run: bool = False) -> Path | None:
    """Derive a student and train it; returns its pipeline folder, ``output_dir/student``, or None for a dry run.

    Raises:
        UserError: a mistake in the config, the teacher, the data or the output folder, before any work.
    """
    # 1. what was asked for, checked
    config = resolve(config)
    run = RunFolder(config.output_dir)
    run.check(config, resume=resume)
    teacher = load_teacher(config.teacher)
    size = config.image_size or teacher.unet.config.sample_size
    plan = plan_student({**teacher.unet.config, "sample_size": size}, config.student)
    images = open_images(config.data, image_size=size, channels=teacher.unet.config.in_channels)
    accelerator = make_accelerator(config.training, run)
    parts = accelerator.num_processes * config.training.gradient_accumulation
    check_terms(config.loss, plan, config.training.batch_size // parts)
    log.info("%s\nplan: %s\ndata: %s", settings_text(config), plan, images.description)
    if dry_run:
        return None
    log.info("running %d process(es) on %s", accelerator.num_processes, accelerator.device)
    if accelerator.is_main_process:
        run.start(config)
        run.write_json("plan.json", plan.to_dict())
        sources = {"teacher": teacher.ref, "teacher_sha256": teacher.sha256}
        data = {"data": images.description, "data_sha256": images.fingerprint}
        run.write_json("provenance.json", {**sources, **data, **environment()})
    accelerator.wait_for_everyone()

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
    if accelerator.is_main_process:
        write_pipeline(RedDDPMPipeline(student, scheduler), run.path / "student")
        log.info("student written to %s", run.path / "student")
    accelerator.wait_for_everyone()
    accelerator.end_training()  # ends the process group too: nothing may wait after it
    return run.path / "student"
