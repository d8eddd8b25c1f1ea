"""A student folder that is to be given away, with all that its card is written from; checked, nothing of it is run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..pipelines.conditioning import Conditioning, conditioning_of
from ..plan_facts import plan_facts
from ..sources.folder_files import read_json
from ..sources.image_files import one_line
from ..sources.model_folder import ModelFolder, check_weights_file, find_model
from ..sources.teacher import sha256_of
from .licence import is_hub_id, teacher_folder

MOST_TEACHERS = 3
"""One after the other: each makes feature maps at least 2x smaller, and 8x is the most."""


@dataclass(frozen=True)
class Student:
    """A student folder, the report of its evaluation (None: there is none) and the records of its run, as JSON.

    ``picture``: samples beside the report, None where there are none.
    """

    folder: Path
    model: ModelFolder
    report: dict[str, Any] | None
    picture: Path | None
    config: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def plan(self) -> dict[str, Any]:
        return plan_facts(dict(self.model.config["student_plan"]))

    @property
    def conditioning(self) -> Conditioning | None:
        """None of a student without classes."""
        return conditioning_of(
            self.model.config.get("num_class_embeds"), self.model.id2label, self.model.learned_guidance
        )

    @property
    def teacher(self) -> str | None:
        """The model that it was distilled from, as it was named then."""
        measured = part(self.report, "provenance")
        given = self.provenance.get("teacher") or self.config.get("teacher") or measured.get("teacher")
        return _text(given)

    @property
    def teacher_sha256(self) -> str | None:
        """Of the teacher's weights, by the run's own record or by the report on the same teacher."""
        own, measured = self.provenance, part(self.report, "provenance")
        given = own.get("teacher_sha256")
        if given is None and measured.get("teacher") == self.teacher:
            given = measured.get("teacher_sha256")
        return _text(given)


def find_student(ref: str, report: Path | None = None, *, measured: bool = True) -> Student:
    """A student folder with its report, given or ``report.json`` of its run folder, and the records there.

    Args:
        measured: False passes over the report: the weights are newer.

    Raises:
        UserError: it is no folder, or no student's; its code or its weights are missing, or the code is not what its
            version says; the report cannot be read, or is of other weights.
    """
    folder = Path(ref).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {ref}: give the student folder that distill has written")
    model = find_model(ref)
    if model.network_class != "RedUNet2DModel" or not isinstance(model.config.get("student_plan"), dict):
        raise UserError(f"{ref} is no student: it has no plan. Give the student folder that distill has written")
    check_weights_file(model)
    again = f"write it again, ddpm_redistill.load_pipeline({ref!r}).save_pretrained(NEW_FOLDER)"
    code = folder / "unet" / f"modeling_red_unet_{model.code_version}.py"
    if not code.is_file():
        raise UserError(f"{ref} does not carry its code, so that it opens nowhere else: {again}")
    if sha256_of(code)[:12] != model.code_version:
        raise UserError(f"{code} was changed after it was written: its version is no longer its own; {again}")
    if report is None and measured:
        report = report_beside(folder)
    found = _report_of(model, report) if report is not None else None
    picture = report.with_name("comparison.png") if report is not None else None
    config, provenance = records_beside(folder)
    return Student(
        folder,
        model,
        found,
        picture if picture is not None and picture.is_file() else None,
        part(found, "provenance", "config") or config,
        provenance,
    )


def report_beside(folder: Path) -> Path | None:
    """report.json of the run folder that a student's ``folder`` lies in."""
    path = folder.resolve().parent / "report.json"
    return path if path.is_file() and path.with_name("config.yaml").is_file() else None


def records_beside(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.yaml and provenance.json of that run folder; empty where there is none. Raises UserError."""
    run = folder.resolve().parent
    if not (run / "config.yaml").is_file():
        return {}, {}
    provenance = run / "provenance.json"
    return _yaml(run / "config.yaml"), read_json(provenance) if provenance.is_file() else {}


def teachers_of(student: Student) -> list[tuple[str, str | None]]:
    """(as it was named, sha256 of its weights) of a student's teacher, of that one's own where it is a student too, and
    so on, as far as they and the records of their runs are on this machine."""
    found: list[tuple[str, str | None]] = []
    teacher, sha256 = student.teacher, student.teacher_sha256
    while teacher is not None and len(found) < MOST_TEACHERS:
        found.append((teacher, sha256))
        folder = teacher_folder(teacher, sha256)
        records = _run_records(folder) if folder else {}
        teacher, sha256 = (_text(records.get(key)) for key in ("teacher", "teacher_sha256"))
    return found


def part(values: Any, *keys: str) -> dict[str, Any]:
    """The object at this path of a JSON value; an empty one where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return dict(values) if isinstance(values, Mapping) else {}


def shown_ref(ref: str) -> str:
    """A model or data source as strangers may read it: of a path on this machine its last name alone."""
    if ref.startswith(("builtin:", "torchvision:", "hub:")) or is_hub_id(ref):
        return ref
    return f"{Path(ref).name} (a local one)"


def _run_records(folder: Path) -> dict[str, Any]:
    """provenance.json of the run that made a student; empty of any other model."""
    run = folder.resolve().parent
    try:
        is_made = find_model(str(folder)).network_class == "RedUNet2DModel" and (run / "config.yaml").is_file()
        return read_json(run / "provenance.json") if is_made else {}
    except UserError:  # no record, or none that can be read
        return {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _report_of(model: ModelFolder, path: Path) -> dict[str, Any]:
    """Raises UserError when it cannot be read, or is of other weights than those in the folder."""
    report = read_json(path)
    measured = part(report, "provenance").get("model_sha256")
    if not measured:
        raise UserError(f"{path} is no report of a model: make one, ddpm-redistill evaluate {model.ref}")
    if measured != sha256_of(*model.weights):
        raise UserError(
            f"{path} is of other weights than {model.ref}: evaluate this student again, or give its own by --report"
        )
    return report


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {one_line(error)}") from error
    return content if isinstance(content, dict) else {}
