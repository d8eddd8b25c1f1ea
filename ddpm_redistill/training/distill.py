"""``distill``: teacher -> plan -> student -> training against the frozen teacher -> the student's folder."""

from collections.abc import Callable
from pathlib import Path

from ..config import DistillConfig
from ..families.registry import find_family
from .distill_classifier import distill_classifier
from .distill_ddpm import distill_ddpm

DISTILL: dict[str, Callable[..., Path | None]] = {"denoise": distill_ddpm, "classify": distill_classifier}
"""By the task of the teacher."""


def distill(
    config: DistillConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """Derive a student and train it; returns its folder, ``output_dir/student``, or None for a dry run.

    Args:
        resume: go on from the newest checkpoint that is intact.
        resume_anyway: the same, and the settings that are safe to change (``same_run``) may differ.

    Raises:
        UserError: a mistake in the config, the teacher, the data or the output folder, before any work; or the disk
            refused what is to be written.
        Stopped: SIGTERM or Ctrl-C during the training, after a checkpoint; a SystemExit.
    """
    how = {"resume": resume, "resume_anyway": resume_anyway, "dry_run": dry_run}
    return DISTILL[find_family(config.teacher)[1].TASK](config, **how)
