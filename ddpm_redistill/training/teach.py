"""``teach``: a network trained from images alone, a DDPM or a classifier."""

from pathlib import Path

from ..config import TeachConfig
from .teach_classifier import teach_classifier
from .teach_ddpm import teach_ddpm


def teach(
    config: TeachConfig, *, resume: bool = False, resume_anyway: bool = False, dry_run: bool = False
) -> Path | None:
    """Train a teacher; returns its folder, ``output_dir/teacher`` (EMA weights), or None for a dry run.

    A classifier where ``config.architecture`` names one, else a DDPM. ``resume`` and ``resume_anyway`` as in
    ``distill``.

    Raises:
        UserError: a mistake in the config, the data or the output folder, before any work; or the disk refused what
            is to be written.
        Stopped: SIGTERM or Ctrl-C during the training, after a checkpoint; a SystemExit.
    """
    of_kind = teach_ddpm if config.architecture is None else teach_classifier
    return of_kind(config, resume=resume, resume_anyway=resume_anyway, dry_run=dry_run)
