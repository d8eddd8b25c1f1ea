"""``distill``: teacher -> plan -> student -> training against the frozen teacher -> a diffusers pipeline folder."""

import logging
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import nn

from ..config import DistillConfig, LossConfig, resolve
from ..core.losses import epsilon_of, min_snr_weight, output_loss, red_loss, task_loss
from ..core.taps import Tap, reading
from ..pipelines.modeling_red_unet import RedUNet2DModel
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..provenance import environment
from ..sources.images import open_images
from ..sources.teacher import Teacher, load_teacher
from ..students.derive import derive_student
from ..students.plan import StudentPlan, plan_student
from .draws import Draws
from .loop import Batch, Objective, make_accelerator, train
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
    weights = {name: float(getattr(config.loss, name)) for name in ("task", "output", "red")}

    # 3. training, and the folder that opens in diffusers
    train(student, objective, weights, draws, sampler, config.training, run, accelerator, resume=resume)
    if accelerator.is_main_process:
        write_pipeline(RedDDPMPipeline(student, scheduler), run.path / "student")
        log.info("student written to %s", run.path / "student")
    accelerator.wait_for_everyone()
    accelerator.end_training()  # ends the process group too: nothing may wait after it
    return run.path / "student"


def distillation_objective(
    teacher: Teacher, student: RedUNet2DModel, plan: StudentPlan, loss: LossConfig, device: torch.device
) -> Objective:
    """The loss parts of a batch, by name, unweighted. The teacher is run only where a weight needs it."""
    teacher_type = teacher.scheduler.config.prediction_type
    alphas_cumprod = teacher.scheduler.alphas_cumprod.to(device)
    needs_teacher = bool(loss.output or loss.red)
    aligned = plan.blocks if loss.red else ()
    student_taps = [Tap(block.name, "output") for block in aligned]
    teacher_taps = [Tap(block.teacher_layer, block.teacher_side) for block in aligned]  # type: ignore[arg-type]

    def objective(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        timesteps, noise = batch["timesteps"], batch["noise"]
        noisy = teacher.scheduler.add_noise(batch["images"], noise, timesteps)
        abar = alphas_cumprod[timesteps]
        with reading(student, student_taps) as student_maps, reading(teacher.unet, teacher_taps) as teacher_maps:
            prediction = network(noisy, timesteps).sample.float()
            epsilon = epsilon_of(prediction, noisy, abar, plan.prediction_type)
            weight = min_snr_weight(abar, loss.min_snr_gamma) if loss.min_snr_gamma else None
            parts = {"task": task_loss(epsilon, noise, weight)}
            if needs_teacher:
                with torch.no_grad():
                    teacher_prediction = teacher.unet(noisy, timesteps).sample.float()
                teacher_epsilon = epsilon_of(teacher_prediction, noisy, abar, teacher_type)
                parts["output"] = output_loss(epsilon, teacher_epsilon, weight)
            if aligned:
                pairs = [(student_maps[s], teacher_maps[t]) for s, t in zip(student_taps, teacher_taps, strict=True)]
                parts["red"] = red_loss(pairs, str(loss.red_distance))
        return parts

    return objective
