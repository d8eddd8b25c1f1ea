"""A classifier's student folder that is to be given away, with all that its card is written from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..families.classifier_config import ClassifierConfig, read_config
from ..families.classifier_files import load_classifier, refers, state_sha256
from ..sources.folder_files import read_json
from .student import part, records_beside, report_beside


@dataclass(frozen=True)
class ClassifierStudent:
    """A student folder, the report of its evaluation (None: there is none) and the records of its run, as JSON."""

    folder: Path
    model: ClassifierConfig
    sha256: str
    report: dict[str, Any] | None
    config: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def plan(self) -> dict[str, Any]:
        return dict(self.model.student_plan or {})

    @property
    def teacher(self) -> str | None:
        """The classifier that it was distilled from, as it was named then."""
        given = self.provenance.get("teacher") or self.config.get("teacher")
        return given if isinstance(given, str) else None

    @property
    def teacher_sha256(self) -> str | None:
        """Of the teacher's tensors, by the run's own record."""
        given = self.provenance.get("teacher_sha256")
        return given if isinstance(given, str) else None

    @property
    def teacher_folder(self) -> Path | None:
        """Where the teacher is on this machine, a folder; None unless its weights are those recorded."""
        try:
            if self.teacher is None or not refers(self.teacher) or self.teacher.startswith(("timm:", "wrn:")):
                return None
            return Path(self.teacher) if state_sha256(load_classifier(self.teacher)[0]) == self.teacher_sha256 else None
        except UserError:
            return None


def find_classifier_student(ref: str, report: Path | None = None, *, measured: bool = True) -> ClassifierStudent:
    """A student folder with its report, given or ``report.json`` of its run folder, and the records there.

    Args:
        measured: False passes over the report: the weights are newer.

    Raises:
        UserError: it is no student's; its weights cannot be loaded; the report cannot be read, or is of other weights.
    """
    model = read_config(ref) if Path(ref).expanduser().is_dir() else None
    if model is None or model.student_plan is None:
        raise UserError(f"{ref} is no student: it has no plan. Give the student folder that distill has written")
    folder, sha256 = Path(ref).expanduser(), state_sha256(load_classifier(ref)[0])
    path = report_beside(folder) if report is None and measured else report
    found = None if path is None else read_json(path)
    if found is not None:
        of_weights = part(found, "provenance").get("model_sha256")
        if not of_weights or not part(found, "accuracy"):
            raise UserError(f"{path} is no report of a classifier: make one, ddpm-redistill evaluate {ref}")
        if of_weights != sha256:
            raise UserError(
                f"{path} is of other weights than {ref}: evaluate this student again, or give its own by --report"
            )
    return ClassifierStudent(folder, model, sha256, found, *records_beside(folder))
