"""The student of a classifier, trained against it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..config import LOSS_TERMS, DistillConfig, TrainingConfig
from ..families.classifier import sized
from ..families.classifier_config import config_from_dict
from ..families.classifier_files import build, load_classifier, state_sha256
from ..recipes import resolve_classifier
from ..students.derive import build_student, derive_student, student_on_meta
from ..students.plan import plan_student
from .batch_norm import batch_norm_record
from .classify import check_training, classifying, distillation_objective, labelled_images, source_opener
from .comparison import alignment, check_terms, comparing, feature_terms, make_regressors, objectives_by_step
from .gradient import place
from .run import open_run
from .run_folder import settings_text
from .step_memory import StepMemory, classification_memory

log = logging.getLogger("ddpm_redistill")


def distill_classifier(
    config: DistillConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """``distill`` of a classifier: the student's folder is a classifier's."""
    # 1. what was asked for, checked
    check_training(config.training)
    config = resolve_classifier(config)
    run = open_run(config, resume=resume, anyway=resume_anyway)
    teacher, told = load_classifier(config.teacher)
    teacher_config = sized(told.to_dict(), config.image_size or told.image_size)
    plan = plan_student(teacher_config, config.student)
    open_source = source_opener(config, plan.sample_size, told.in_channels)
    data = labelled_images(
        open_source(config.data),
        config.classification,
        config.seed,
        open_source,
        num_classes=told.num_classes,
        names=told.classes or None,
        ref=config.teacher,
    )
    config = replace(config, student=plan.options)
    places = alignment(teacher_config, plan, str(config.loss.feature_places))

    def memory_of(training: TrainingConfig) -> StepMemory:
        return classification_memory(
            lambda: build_student(teacher_config, plan),
            training,
            (told.in_channels, plan.sample_size, plan.sample_size),
            teacher=lambda: build(told),
            places=places,
            loss=config.loss,
            processes=run.accelerator.num_processes,
            device=run.accelerator.device,
        )

    config = replace(config, training=run.fitted(config.training, memory_of))
    run = run.settled(config)
    parts = run.accelerator.num_processes * config.training.gradient_accumulation
    check_terms(config.loss, places, config.training.global_batch // parts)
    contents = {
        "teacher_sha256": state_sha256(teacher),
        "teacher_config": told.to_dict(),
        **data.records(),
        **batch_norm_record(student_on_meta(teacher_config, plan), config.training),
    }
    records = run.records({"teacher": config.teacher, "data": data.images.description}, contents, plan.to_dict())
    log.info("%s\nplan: %s\ndata: %s", settings_text(config), plan, data)
    if dry_run:
        return None
    with run.begun(records):
        # 2. the student, and the loss against its teacher
        student = derive_student(teacher, plan, seed=config.seed)
        place(teacher.requires_grad_(False), config.training, run.accelerator.device)
        regressors = make_regressors(config.loss, places, config.seed)
        weights = {name: float(getattr(config.loss, name)) for name in LOSS_TERMS}
        own = replace(config_from_dict(dict(cast(Any, student).config), "the student"), classes=data.names)

        # 3. training, and the student's folder
        with comparing(teacher, student, places if feature_terms(config.loss) else ()) as compared:
            objective_at = objectives_by_step(
                lambda loss: distillation_objective(teacher, loss, compared), config.loss, config.training.steps
            )
            task = classifying(config, own, data)
            return run.train(student, task, data.images, objective_at, weights, "student", loss_modules=regressors)
