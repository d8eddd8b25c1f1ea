"""The model card of a classifier's student: every measured number in it is the report's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..plan_facts import plan_facts
from . import measured as m
from .card import HERE, MARK, SOURCE, change, facts_of_plan, facts_of_training, files_beside, licence_text, purpose, put
from .classes import MOST_NAMES, shortened
from .classifier_student import ClassifierStudent, find_classifier_student
from .licence import licence_of
from .markdown import DASH, code, number, table, text
from .student import part, shown_ref

USAGE = """import torch
from ddpm_redistill import load_classifier
{download}
network, config = load_classifier({folder})
images = torch.rand({shape})  # pixels from 0, black, to 1, white
mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (config.mean, config.std))
with torch.no_grad():
    logits = network((images - mean) / std)
print(logits.argmax(1))  # numbers of classes, which config.classes names
"""
DOWNLOAD = "from huggingface_hub import snapshot_download\n"


def write_classifier_card(ref: str, report: Path | None = None, *, measured: bool = True) -> list[Path]:
    """Write the card of a classifier's student folder; -> what was written.

    Raises:
        UserError: as ``find_classifier_student``.
    """
    student = find_classifier_student(ref, report, measured=measured)
    return put(student.folder, classifier_card_files(student))


def classifier_card_files(student: ClassifierStudent, repository: str = HERE) -> dict[str, bytes]:
    """What ``write_classifier_card`` would write: name -> content; empty when a person keeps a README.md of their
    own."""
    return files_beside(student.folder, lambda: str(classifier_card(student, repository)).encode())


def classifier_card(student: ClassifierStudent, repository: str = HERE) -> ModelCard:
    """Metadata for the hub, and the text."""
    folder, data = student.teacher_folder, student.config.get("data")
    licence = licence_of(str(student.teacher), folder) if folder else {}
    metadata = ModelCardData(
        **{"license": "unknown", **licence},
        pipeline_tag="image-classification",
        tags=["distillation", "image-classification", "ddpm-redistill"],
        datasets=[data.removeprefix("hub:")] if isinstance(data, str) and data.startswith("hub:") else None,
    )
    body = "\n\n".join(sections(student, repository, licence))
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{MARK}\n\n{body}\n")


def sections(student: ClassifierStudent, repository: str, licence: dict[str, Any]) -> Iterator[str]:
    model, report = student.model, student.report
    teacher = code(shown_ref(student.teacher)) if student.teacher else "an unrecorded teacher"
    of_its_own = part(student.plan, "options").get("architecture") is not None
    plan = plan_facts(student.plan)
    yield f"# A student of {teacher}: {'a network of its own' if of_its_own else change(plan)}"
    why = "" if of_its_own else f" so that it needs less memory{purpose(plan)}"
    yield (
        f"A classifier of images, {code(model.architecture)}, that was distilled from {teacher} by ddpm-redistill"
        f" ({SOURCE}){why}. It tells {number(model.num_classes)} classes apart."
    )
    here = repository == HERE
    program = USAGE.format(
        download="" if here else DOWNLOAD,
        folder=json.dumps(repository) if here else f"snapshot_download({json.dumps(repository)})",
        shape=f"1, {model.in_channels}, {model.image_size}, {model.image_size}",
    )
    needs = " and timm" * model.architecture.startswith("timm:")
    yield f"## Use it\n\nWith ddpm-redistill{needs} installed:\n\n```python\n{program}```"
    yield "## What it is\n\n" + table(["", ""], facts(student))
    if report is None:
        yield "## Not measured yet\n\n" + missing(student)
    else:
        yield "## Accuracy\n\n" + accuracy(student, report)
        yield "## Memory\n\n" + m.memory(report)
        yield "## Speed\n\n" + m.speed(report)
        yield "## What measured it\n\n" + m.origin(report)
    yield "## Licence\n\n" + licence_text(licence)


def facts(student: ClassifierStudent) -> Iterator[list[str]]:
    model, plan = student.model, plan_facts(student.plan)
    if student.teacher:
        yield ["teacher", code(shown_ref(student.teacher))]
    yield ["sha256 of the teacher's tensors", code(student.teacher_sha256 or "not recorded")]
    yield from facts_of_plan(plan)
    yield ["plan: starts from", text(f"{plan.get('start')} weights")]
    if model.arguments:
        yield ["arguments of its architecture", text(", ".join(f"{k} {value}" for k, value in model.arguments.items()))]
    yield ["images", text(f"{model.image_size} px, channels {model.in_channels}")]
    for name, values in (("mean", model.mean), ("standard deviation", model.std)):
        yield [f"{name} of pixels from 0 to 1, by channel", text(", ".join(f"{value:g}" for value in values))]
    yield ["classes, in the order of the outputs", text(named(model.classes) or f"{model.num_classes}, without names")]
    yield from facts_of_training(student.config)


def named(classes: tuple[str, ...]) -> str:
    """All of few names; of more the first ones and the last."""
    names = [shortened(name) for name in classes]
    return ", ".join(names if len(names) <= MOST_NAMES else [*names[: MOST_NAMES - 1], "...", names[-1]])


def accuracy(student: ClassifierStudent, report: dict[str, Any]) -> str:
    found = part(report, "accuracy")
    networks = {name: part(found, "networks", name) for name in ("student", "teacher")}
    tops = [key for key in ("top1", "top5") if any(key in values for values in networks.values())]
    rows = [[name, *(share(values, key) for key in tops)] for name, values in networks.items() if values]
    made = part(report, "provenance")
    source = code(shown_ref(str(made.get("data"))))
    held = f"that its run has held out of {source}, and that it has not learned from"
    count = number(found.get("num_images"))
    lines = [
        f"On {count} images {held if found.get('held_out') else f'of {source}'}. In brackets: 95% intervals (Wilson).",
        table(["", *map(code, tops)], rows),
    ]
    lines += [
        f"Student and teacher name the same class first, right or wrong, of {share(pair, 'agreement')}."
        for pair in found.get("agreements") or ()
    ]
    warnings = found.get("warnings")
    lines += [f"Note: {text(warning)}." for warning in (warnings if isinstance(warnings, list) else ())]
    sha256 = made.get("teacher_sha256")
    if sha256 and student.teacher_sha256 and sha256 != student.teacher_sha256:
        lines.append(f"The teacher in this section is another one than it was distilled from: sha256 {code(sha256)}.")
    return "\n\n".join(lines)


def share(values: Any, name: str) -> str:
    """In percent, with its interval."""
    values = part(values)
    ends = values.get(f"{name}_interval")
    shown = [values.get(name), *(ends if isinstance(ends, list) else ())]
    value, *between = [f"{100 * each:.2f}%" if isinstance(each, int | float) else DASH for each in shown]
    return f"{value} [{', '.join(between)}]" if between else value


def missing(student: ClassifierStudent) -> str:
    return (
        "Accuracy, memory and speed are missing here: there is no report.json of these weights. This makes it, on the"
        " images that the run has held out, and writes this card again:\n\n"
        f"```bash\nddpm-redistill evaluate runs/NAME/{student.folder.name}\n```"
    )
