"""Distil a pretrained DDPM into a student whose peak memory is four times smaller.

The flow, and the order in which to read the code:

    teacher  -> load_teacher      sources/teacher.py       a diffusers UNet2DModel, checked and frozen
    plan     -> plan_student      students/plan.py         what to change, as data
    student  -> derive_student    students/derive.py       teacher + plan -> RedUNet2DModel
    distill  -> distill           training/distill.py      the loop, the losses, the checkpoints
    pipeline -> RedDDPMPipeline   pipelines/               samples images; opens in diffusers
    evaluate -> evaluate          evaluation/evaluate.py   distances, memory, speed
    report   -> write_report      evaluation/report.py     one page that shows it all

Names below are imported when first used, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ClassificationConfig, DistillConfig, LossConfig, StudentConfig, TeachConfig, TrainingConfig
    from .core.memory import MemoryProfile, profile_memory
    from .errors import UserError
    from .evaluation.evaluate import evaluate
    from .evaluation.evaluate_classifier import evaluate_classifier
    from .evaluation.report import write_report
    from .evaluation.sampling import sample_images
    from .export.export_model import export_model
    from .families.classifier_files import load_classifier
    from .pipelines.lean import lean_execution
    from .pipelines.modeling_red_unet import RedUNet2DModel
    from .pipelines.pipeline_red_ddpm import RedDDPMPipeline
    from .pipelines.red_block import REDBlock, fold_batch_norms
    from .sources.images import open_images
    from .sources.onnx_model import load_onnx_pipeline
    from .sources.teacher import Teacher, load_pipeline, load_teacher
    from .students.derive import derive_student
    from .students.plan import StudentPlan, plan_student
    from .training.distill import distill
    from .training.teach import teach

_HOMES = {
    "ClassificationConfig": "config",
    "DistillConfig": "config",
    "LossConfig": "config",
    "MemoryProfile": "core.memory",
    "REDBlock": "pipelines.red_block",
    "RedDDPMPipeline": "pipelines.pipeline_red_ddpm",
    "RedUNet2DModel": "pipelines.modeling_red_unet",
    "StudentConfig": "config",
    "StudentPlan": "students.plan",
    "TeachConfig": "config",
    "Teacher": "sources.teacher",
    "TrainingConfig": "config",
    "UserError": "errors",
    "derive_student": "students.derive",
    "distill": "training.distill",
    "evaluate": "evaluation.evaluate",
    "evaluate_classifier": "evaluation.evaluate_classifier",
    "export_model": "export.export_model",
    "fold_batch_norms": "pipelines.red_block",
    "lean_execution": "pipelines.lean",
    "load_classifier": "families.classifier_files",
    "load_onnx_pipeline": "sources.onnx_model",
    "load_pipeline": "sources.teacher",
    "load_teacher": "sources.teacher",
    "open_images": "sources.images",
    "plan_student": "students.plan",
    "profile_memory": "core.memory",
    "sample_images": "evaluation.sampling",
    "teach": "training.teach",
    "write_report": "evaluation.report",
}
__all__ = list(_HOMES)

# diffusers opens a student folder's network as ddpm_redistill.RedUNet2DModel, and asks the same module for the
# base class that says how to load it.
_HOMES["ModelMixin"] = "pipelines.modeling_red_unet"
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
