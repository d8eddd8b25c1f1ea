"""The model card, README.md of a student folder: every measured number in it is the report's."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..files import written_aside
from ..sources.model_folder import ModelFolder
from . import measured as m
from .classes import condition, facts_of_classes
from .licence import is_hub_id, licence_of, teacher_folder
from .markdown import code, listed, number, table, text
from .student import Student, find_student, part, shown_ref, teachers_of
from .usage import usage

log = logging.getLogger("ddpm_redistill")

CARD, PICTURE = "README.md", "samples.png"
MARK = (
    "<!-- Written by ddpm-redistill, and again after each evaluation: take this line out to keep words of your own. -->"
)
HERE = "PATH/TO/THIS/FOLDER"
"""Where the card tells of no repository."""
SOURCE = "Chen et al., ReDistill, TMLR 2025, [arXiv 2406.03744](https://arxiv.org/abs/2406.03744)"


def write_card(ref: str, report: Path | None = None, *, measured: bool = True) -> list[Path]:
    """Write the card of a student folder, and its picture; -> what was written.

    A README.md without our mark is a person's own: it is left alone, and said so.

    Raises:
        UserError: as ``find_student``.
    """
    student = find_student(ref, report, measured=measured)
    return put(student.folder, card_files(student))


def put(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write the files of a card into the student's ``folder``, each whole or not at all."""
    paths = []
    for name, content in files.items():
        with written_aside(folder / name) as aside:
            aside.write_bytes(content)
        paths.append(folder / name)
    return paths


def card_files(student: Student, repository: str = HERE) -> dict[str, bytes]:
    """What ``write_card`` would write: name -> content. Empty when a person keeps a README.md of their own."""
    files = files_beside(student.folder, lambda: str(card(student, repository)).encode())
    if files and student.picture is not None:
        files[PICTURE] = student.picture.read_bytes()
    return files


def files_beside(folder: Path, card: Callable[[], bytes]) -> dict[str, bytes]:
    """README.md with what ``card`` makes; empty when a person keeps one of their own in the ``folder``."""
    there = folder / CARD
    if there.is_file() and MARK not in there.read_text(encoding="utf-8", errors="replace"):
        log.info("%s is left as it is: it is not one of ours, or its mark was taken out", there)
        return {}
    return {CARD: card()}


def card(student: Student, repository: str = HERE) -> ModelCard:
    """Metadata for the hub, and the text."""
    teachers = teachers_of(student)
    folder = teacher_folder(student.teacher, student.teacher_sha256)
    licence = licence_of(student.teacher or "", folder) if folder else {}
    published = (ref for ref, sha256 in teachers if is_hub_id(ref) and teacher_folder(ref, sha256))
    data = student.config.get("data")
    kind = "class-conditional" if student.conditioning else "unconditional"
    metadata = ModelCardData(
        **{"license": "unknown", **licence},
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",  # of classes too: the hub has no other task for them
        tags=["ddpm", "distillation", f"{kind}-image-generation", "ddpm-redistill"],
        base_model=next(published, None),
        datasets=[data.removeprefix("hub:")] if isinstance(data, str) and data.startswith("hub:") else None,
    )
    body = "\n\n".join(filter(None, sections(student, repository, licence, teachers)))
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{MARK}\n\n{body}\n")


def sections(
    student: Student, repository: str, licence: dict[str, Any], teachers: list[tuple[str, str | None]]
) -> Iterator[str]:
    plan, report = student.plan, student.report
    teacher = code(shown_ref(student.teacher)) if student.teacher else "an unrecorded teacher"
    first = " than those of the first teacher" if of_a_student(student) else ""
    yield f"# A student of {teacher}: {change(plan)}{first}"
    yield (
        f"A DDPM that was distilled from {teacher} by ddpm-redistill ({SOURCE}) so that it needs less"
        f" memory{purpose(plan)}. It samples images {condition(student.conditioning)}."
    )
    if student.picture is not None:
        yield f"![Sample grids, each under its name]({PICTURE})\n\n*{m.picture_caption(report)}*"
    yield "## Use it\n\n" + usage(student, repository)
    yield "## What it is\n\n" + table(["", ""], facts(student, teachers))
    if report is None:
        yield "## Not measured yet\n\n" + missing(student)
    else:
        yield from m.measured_sections(student, report)
    yield "## Licence\n\n" + licence_text(licence)


def change(plan: Mapping[str, Any]) -> str:
    """What a student is beside its teacher, read by ``plan_facts``."""
    cheap = "cheap convolutions" if plan.get("cheap") else ""
    if plan.get("reduction") == 1:
        return cheap or "the same network"
    return f"feature maps {number(plan.get('reduction'))}x smaller a side" + f", {cheap}" * bool(cheap)


def purpose(plan: Mapping[str, Any]) -> str:
    """Of what memory it needs less."""
    parts = ["at its peak"] * (plan.get("reduction") != 1) + ["for its weights"] * bool(plan.get("cheap"))
    return f" {' and '.join(parts)}" if parts else ""


def of_a_student(student: Student) -> bool:
    """Whether its teacher was a student itself, by the plan."""
    strides = student.plan.get("teacher_strides")
    return isinstance(strides, list) and strides[:1] not in ([], [1])


def facts_of_images(model: ModelFolder) -> Iterator[list[str]]:
    size, channels = model.config.get("sample_size"), model.config.get("in_channels")
    if model.autoencoder is None:
        yield ["images", text(f"{size} px, channels {channels}")]
        return
    autoencoder = model.autoencoder.config
    pixels = size * model.pixels_per_latent if isinstance(size, int) else size
    yield ["images", text(f"{pixels} px, channels {autoencoder['out_channels']}")]
    yield ["latents, which the student denoises", text(f"{size} a side, channels {channels}")]
    yield ["autoencoder, as its teacher's", code(autoencoder["_class_name"])]


def facts(student: Student, teachers: list[tuple[str, str | None]]) -> Iterator[list[str]]:
    plan = student.plan
    if student.teacher:
        yield ["teacher", code(shown_ref(student.teacher))]
    yield ["sha256 of the teacher's weights", code(student.teacher_sha256 or "not recorded")]
    for ref, sha256 in teachers[1:]:
        yield ["the teacher's own teacher", code(shown_ref(ref))]
        yield ["sha256 of its weights", code(sha256 or "not recorded")]
    if of_a_student(student) and len(teachers) < 2:
        yield ["the teacher's own teacher", "not recorded here; the teacher is a student itself"]
    yield from facts_of_plan(plan)
    yield ["plan: predicts, starts from", text(f"{plan.get('prediction_type')}, {plan.get('start')} weights")]
    if any(factor != 1 for factor in plan.get("widen") or ()):
        yield ["plan: times the teacher's channels, by level", text(listed(plan["widen"]))]
    yield from facts_of_images(student.model)
    yield from facts_of_classes(student.conditioning)
    yield from facts_of_training(student.config)


def facts_of_plan(plan: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows of what every plan has, read by ``plan_facts``."""
    strides = "; of the student ".join(listed(plan.get(f"{name}_strides")) for name in ("teacher", "student"))
    yield ["plan: strides by level", text(f"of the teacher {strides}")]
    count = len(plan.get("blocks") or ())
    blocks = f"{count} block{'s' * (count != 1)}"
    red = f"{plan.get('red_placement')}: {blocks}, norm {plan.get('red_norm')}, start {plan.get('red_start')}"
    yield ["plan: RED blocks", text(red)]
    if plan.get("cheap"):
        norm = part(plan, "options").get("cheap_norm")
        yield ["plan: cheap convolutions in residual blocks", text(f"{plan['cheap']}, norm {norm}")]


def facts_of_training(config: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows of what a run's config.yaml says."""
    if isinstance(config.get("data"), str):
        yield ["data that it was trained on", code(shown_ref(config["data"]))]
    training = part(config, "training")
    if config.get("recipe"):
        yield ["recipe", code(config["recipe"])]
    loss = {name: value for name, value in part(config, "loss").items() if value not in (None, 0, False)}
    if "red" not in loss:
        loss.pop("red_distance", None)
    if loss.get("feature_places") == "red":
        loss.pop("feature_places")
    if loss:
        yield ["loss", text(", ".join(f"{name} {value}" for name, value in loss.items()))]
    if training:
        kept = ("steps", "batch_size", "learning_rate", "schedule", "ema_decay", "mixed_precision")
        yield ["training", text(", ".join(f"{key} {training[key]}" for key in kept if key in training))]
    if config.get("seed") is not None:
        yield ["seed", text(number(config["seed"]))]


def missing(student: Student) -> str:
    given = {"TEACHER": student.teacher, "DATA": student.config.get("data")}
    teacher, data = (ref if isinstance(ref, str) and shown_ref(ref) == ref else name for name, ref in given.items())
    return (
        "Distances, memory, speed and samples are missing here: there is no report.json of these weights. This makes"
        f" it, and writes this card again:\n\n```bash\nddpm-redistill evaluate runs/NAME/{student.folder.name}"
        f" --teacher {teacher} --data {data}\n```"
    )


def licence_text(licence: dict[str, Any]) -> str:
    if licence:
        named = ", ".join(text(listed(value)) for value in licence.values())
        return f"The teacher's, carried over from its own card: {named}."
    return (
        "Unknown: ask whoever made the teacher. A student is made from its teacher's weights, and where this card was"
        " written the teacher was not at hand with a card that names a licence."
    )
