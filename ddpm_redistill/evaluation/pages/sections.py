"""The other sections of report.html: samples, memory, speed, training, plan, provenance.

Each is a function from a part of the report to HTML; an absent part gives an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from ...core.timeline import TimelinePoint
from ...errors import UserError
from . import template as h
from .charts import NOT_LOSSES, PEAKS, loss_curves, memory_bars
from .pictures import png_bytes
from .text import DASH, TIMES, figure, listed, mib, number, part, plain, ratio
from .timeline import peak_of, timeline_picture

MEMORY = {
    "tensor_peak": ("Exact tensor peak", "live activation bytes of one forward pass"),
    "tensor_peak_lean": ("Exact tensor peak, lean", "the same outputs, run with less alive at once"),
    "paper_peak": ("Paper's peak", "largest residual block, of a classifier also layer; skips left out"),
    "paper_peak_with_skips": ("Paper's peak with skips", "the same with live skip connections"),
    "red_paper_peak": ("Paper's peak of RED blocks", "largest RED block"),
    "weights": ("Weights", "parameters and buffers"),
    "decoder_peak": ("Exact tensor peak of the decoder", "which makes an image of the latents, after all steps"),
    "autoencoder_weights": ("Weights of the autoencoder", "beside those of the network of latents"),
}
BARS_ALT = "Bars of the named memory peaks: the numbers of the table above"


def samples_section(grids: Mapping[str, Image.Image], compared: bool, same_noise: bool, by_class: bool = False) -> str:
    """``same_noise``: the student's images were sampled with the teacher's, not made elsewhere; ``by_class``: a column
    of a grid is a class."""
    known = {"teacher": "Teacher", "student": "Student" if compared else "Model", "data": "Data"}
    shown = []
    for name, image in grids.items():
        caption = known.get(name.lower(), name)
        kind = "real images" if name.lower() == "data" else "generated images"
        shown.append(h.picture(png_bytes(image), f"Grid of {kind}: {caption}", caption))
    if not shown:
        return ""
    both = same_noise and {"teacher", "student"} <= {name.lower() for name in grids}
    lead = "The same place in the grids of teacher and student starts from the same noise." if both else ""
    lead = " ".join(filter(None, ["A column with a title is one class." if by_class else "", lead]))
    layout = "grids classed" if by_class else "grids"
    return h.section("Samples", h.paragraph(lead) if lead else "", f'<div class="{layout}">{"".join(shown)}</div>')


def memory_section(memory: dict[str, Any], timelines: Mapping[str, Sequence[TimelinePoint]]) -> str:
    teacher, student = part(memory, "teacher"), part(memory, "student")
    timelines = {name if teacher or name != "student" else "model": points for name, points in timelines.items()}
    rows = []
    for key, (name, note) in MEMORY.items():
        values = [figure(model.get(key)) for model in (teacher, student) if model]
        if any(values):
            cells = [h.cell(mib(v), f"{v:,} B") if v else h.cell(DASH) for v in values]
            if len(values) == 2:
                cells.append(h.cell(ratio(*values) or DASH))
            rows.append([h.cell(name, note), *cells])
    if not rows:
        return h.section("Memory", _timeline(timelines))
    columns = ["Teacher", "Student", "Smaller by"] if teacher and student else ["Teacher" if teacher else "Model"]
    known = any((figure(model.get(key)) or 0) > 0 for model in (teacher, student) for key in PEAKS)
    places = [
        f"{name} in {model['peak_module']} ({model.get('peak_operation')})"
        for name, model in (("Teacher", teacher), ("Student" if teacher else "Model", student))
        if model.get("peak_module")
    ]
    lead = (
        "Peaks of activations in 32-bit floats for one image, each by its own definition; "
        "different definitions are different quantities."
    )
    return h.section(
        "Memory",
        h.paragraph(lead),
        h.table(["", *columns], rows, label="Memory"),
        h.paragraph(f"The exact peak occurs: {'; '.join(places)}.", "note") if places else "",
        h.picture(memory_bars({"teacher": teacher, "student": student}), BARS_ALT, css_class="chart") if known else "",
        _timeline(timelines),
    )


def _timeline(timelines: Mapping[str, Sequence[TimelinePoint]]) -> str:
    ran = {name: points for name, points in timelines.items() if points}
    if not ran:
        return ""
    peaks = [f"{name} peaks at {mib(peak_of(points).live_bytes)}" for name, points in ran.items()]
    return h.picture(timeline_picture(ran), f"Live activations over one forward pass: {', '.join(peaks)}", "", "chart")


def speed_section(speed: dict[str, Any], memory: dict[str, Any]) -> str:
    who = [name for name in ("teacher", "student") if part(speed, name) or part(memory, name)]
    models = [{**part(memory, name), **part(speed, name)} for name in who]
    labels = {
        "images_per_second": "Images per second",
        "seconds": "Seconds in all",
        "num_images": "Images",
        "num_inference_steps": "Steps per image",
        "guidance": "Guidance, 1 is none",
        "passes_per_step": "Network passes a step",
        "batch_size": "Batch size",
        "parameters": "Parameters",
        "macs": "MACs of one forward pass",
    }
    rows = []
    for key, label in labels.items():
        values = [figure(model.get(key)) for model in models]
        if any(value is not None for value in values):
            cells = [h.cell(number(value)) for value in values]
            if len(values) == 2 and key == "images_per_second":
                cells.append(h.cell(ratio(values[1], values[0]) or DASH, "faster"))
            elif len(values) == 2:
                smaller = ratio(values[0], values[1]) if key in ("parameters", "macs") else None
                cells.append(h.cell(smaller or "", "smaller" if smaller else ""))
            rows.append([h.cell(label), *cells])
    columns = ["Teacher", "Student", "Ratio"] if len(models) == 2 else ["Teacher" if who == ["teacher"] else "Model"]
    return h.section("Speed and size", h.table(["", *columns], rows, label="Speed and size") if rows else "")


def losses_section(rows: Sequence[Mapping[str, Any]]) -> str:
    losses = [row for row in rows if "step" in row and set(row) - NOT_LOSSES]
    try:
        png = loss_curves(losses)
    except UserError:  # no row has a loss that can be drawn
        return ""
    last = losses[-1]
    parts = [f"{name} {number(value)}" for name, value in last.items() if name not in NOT_LOSSES]
    alt = f"Losses by training step; at step {last['step']}: {', '.join(parts)}"
    return h.section("Training", h.picture(png, alt, css_class="chart"))


def plan_section(plan: dict[str, Any]) -> str:
    names = {
        "reduction": "Reduction",
        "teacher_strides": "Strides of the teacher",
        "student_strides": "Strides of the student",
        "cheap": "Cheap convolutions",
        "prediction_type": "The student predicts",
        "red_placement": "RED placement",
        "red_norm": "RED norm",
        "red_start": "RED start",
        "start": "Start of the other weights",
    }
    settings = [(label, plain(plan[key])) for key, label in names.items() if plan.get(key) not in (None, "")]
    rows = []
    for block in filter(None, map(part, listed(plan.get("blocks")))):
        side = f"its {block['teacher_side']}, " if block.get("teacher_side") else ""
        cells = [
            h.cell(block.get("name", ""), code=True),
            h.cell(plain(block.get("channels", ""))),
            h.cell(_size(block.get("resolution"))),
            h.cell(
                block.get("teacher_layer", ""),
                side + _size(block.get("teacher_resolution", block.get("resolution"))),
                code=True,
            ),
        ]
        rows.append(cells)
    columns = ["RED block", "Channels", "Resolution", "Matched in the teacher to"]
    return h.section(
        "Plan",
        h.facts(settings, "Plan"),
        h.table(columns, rows, numbers_from=len(columns), label="RED blocks") if rows else "",
    )


def provenance_section(provenance: dict[str, Any]) -> str:
    return h.section("Provenance", h.facts(_flat(provenance), "Provenance"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} · ")
        else:
            yield prefix + str(key), plain(value)


def _size(value: Any) -> str:
    if value is None:
        return DASH
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    return f" {TIMES} ".join(map(str, sides))
