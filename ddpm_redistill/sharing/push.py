"""``push``: a student folder, with its card, to a repository on a model hub."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from ..errors import UserError
from ..families.classifier_files import load_classifier
from ..families.registry import find_family
from ..sources.image_files import one_line
from ..sources.model_folder import HUB_ID
from ..sources.teacher import load_pipeline
from .card import card_files, put
from .classifier_card import classifier_card_files
from .classifier_student import find_classifier_student
from .student import find_student

log = logging.getLogger("ddpm_redistill")

LEFT_OUT = [".*", "*/.*", "*.pyc", "*__pycache__*"]
"""Patterns of what is not sent: hidden files and folders, and what Python leaves behind."""


STUDENTS: dict[str, tuple[Callable[..., Any], ...]] = {
    "denoise": (find_student, load_pipeline, card_files),
    "classify": (find_classifier_student, load_classifier, classifier_card_files),
}
"""By task: what finds a student, opens it, and makes its card."""


@dataclass(frozen=True)
class Push:
    """What is sent: sizes in bytes by path in the repository, and where it can be seen (None: a dry run)."""

    repository: str
    files: dict[str, int]
    url: str | None


def push(
    model: str, repository: str, *, report: str | None = None, private: bool = False, dry_run: bool = False
) -> Push:
    """Write the card of a student folder and upload the folder, making the repository if there is none.

    Args:
        repository: owner/name.
        report: a report.json; None is that of the folder's run.
        private: of a repository that is made; one that is there stays as it is.
        dry_run: look at everything, write and send nothing; needs no network and no token.

    Raises:
        UserError: a bad name, a folder that is no whole student, no token, or the hub's refusal.
    """
    check_repository(repository)
    find, load, card_files_of = STUDENTS[find_family(model)[1].TASK]
    student = find(model, None if report is None else Path(report).expanduser())
    load(model)  # what does not open here would open nowhere
    written = card_files_of(student, repository)
    files = {path: (student.folder / path).stat().st_size for path in files_of(student.folder)}
    files |= {name: len(content) for name, content in written.items()}
    token = "" if dry_run else get_token()
    if token is None:
        raise UserError("no token of the hub is known here: run `hf auth login`, or set HF_TOKEN")
    if student.report is None:
        log.warning(
            "the card of %s has no figures: there is no report.json of its weights. `evaluate` makes one", model
        )
    files = dict(sorted(files.items()))
    if dry_run:
        return Push(repository, files, None)
    put(student.folder, written)
    try:
        hub = HfApi(token=token)
        hub.create_repo(repository, private=private or None, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=student.folder,
            ignore_patterns=LEFT_OUT,
            commit_message="Upload a student of ddpm-redistill",
        )
    except Exception as error:  # the hub's many ways to say no: offline, forbidden, gone
        reason = one_line(error).replace(token, "...")
        raise UserError(f"the hub did not take {model} as {repository}: {reason}") from None
    return Push(repository, files, f"{hub.endpoint}/{repository}")


def check_repository(repository: str) -> None:
    """Raises UserError unless it is owner/name as the hub allows it."""
    try:
        validate_repo_id(repository)
        if not HUB_ID.fullmatch(repository):
            raise HFValidationError("it must be owner/name")
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no name of a repository, owner/name: {one_line(error)}") from None


def files_of(folder: Path) -> Iterator[str]:
    """Paths of what is sent, relative to the folder, as ``upload_folder`` takes them.

    Raises:
        UserError: one is a link out of the folder.
    """
    home = folder.resolve()
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    for name in filter_repo_objects(names, ignore_patterns=LEFT_OUT):
        real = (folder / name).resolve()
        if not real.is_relative_to(home):
            raise UserError(f"{folder / name} is a link out of the folder, to {real}: it would be published")
        yield name
