"""The sections of report.html: functions from parts of the report to HTML; an absent part gives an empty one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from ..errors import UserError
from . import report_template as h
from .pictures import MIB, NOT_LOSSES, PEAKS, loss_curves, memory_bars, png_bytes

UNBIASED_FROM = 2048
"""Below this many images the note on the Frechet distance's bias is shown."""
PAIRS = {
    "student_to_data": ("Student to data", "Model to data"),
    "teacher_to_data": ("Teacher to data", ""),
    "student_to_teacher": ("Student to teacher", ""),
}
METRICS = {
    "fid": "FID",
    "kid": "KID",
    "isc": "Inception Score",
    "fd_efficientnet_lite0": "Frechet distance",
    "kid_efficientnet_lite0": "KID",
}
EXTRACTORS = {"inception-v3-compat": "Inception", "efficientnet-lite0-64px": "EfficientNet-lite0"}
MEMORY = {
    "tensor_peak": ("Exact tensor peak", "live activation bytes of one forward pass"),
    "paper_peak": ("Paper's peak", "largest residual block, skips left out"),
    "paper_peak_with_skips": ("Paper's peak with skips", "the same with live skip connections"),
    "red_paper_peak": ("Paper's peak of RED blocks", "largest RED block"),
    "weights": ("Weights", "parameters and buffers"),
}
BARS_ALT = "Bars of the named memory peaks: the numbers of the table above"
DASH, TIMES = "\u2013", "\u00d7"


def samples_section(grids: Mapping[str, Image.Image], compared: bool) -> str:
    known = {"teacher": "Teacher", "student": "Student" if compared else "Model", "data": "Data"}
    shown = []
    for name, image in grids.items():
        caption = known.get(name.lower(), name)
        kind = "real images" if name.lower() == "data" else "generated images"
        shown.append(h.picture(png_bytes(image), f"Grid of {kind}: {caption}", caption))
    if not shown:
        return ""
    both = {"teacher", "student"} <= {name.lower() for name in grids}
    lead = "The same place in the grids of teacher and student starts from the same noise." if both else ""
    return h.section("Samples", h.paragraph(lead), f'<div class="grids">{"".join(shown)}</div>')


def distances_section(distances: dict[str, Any], compared: bool) -> str:
    pairs = {key: distances[key] for key in PAIRS if distances.get(key)}
    pairs |= {key: value for key, value in distances.items() if "_to_" in key and value and key not in pairs}
    if not pairs:
        return ""
    names = list(dict.fromkeys(n for values in pairs.values() for n in values if not n.endswith("_std")))
    rows = []
    for key, values in pairs.items():
        title = PAIRS.get(key, (key.replace("_", " ").capitalize(),) * 2)[0 if compared else 1] or key
        cells = [h.cell(title)]
        for name in names:
            spread = values.get(f"{name}_std")
            note = "" if spread is None else f"± {number(spread)}"
            cells.append(h.cell(number(values.get(name)), note))
        rows.append(cells)
    count, extractor = distances.get("num_images"), distances.get("extractor") or {}
    lead = (
        f"{number(count)} images of each set, features of {extractor_name(distances)}. Lower is nearer. "
        "KID is a mean over random subsets ± its standard deviation over them."
    )
    caution = (
        f"With {number(count)} images, fewer than {UNBIASED_FROM:,}, the Frechet distance is biased upwards: "
        "compare it only with values at the same number of images."
    )
    return h.section(
        "Distances",
        h.paragraph(lead),
        h.table(["Pair", *(METRICS.get(name, name) for name in names)], rows, label="Distances"),
        h.paragraph(caution, "caution") if isinstance(count, int) and count < UNBIASED_FROM else "",
        h.paragraph(_extractor_note(extractor), "note") if extractor else "",
    )


def extractor_name(distances: dict[str, Any]) -> str:
    name = str((distances.get("extractor") or {}).get("name", "an unnamed extractor"))
    return EXTRACTORS.get(name, name)


def _extractor_note(extractor: dict[str, Any]) -> str:
    name = extractor.get("name")
    words = [f"Extractor {name}", f"layer {extractor.get('layer')}", f"input {extractor.get('resize')}"]
    if extractor.get("weights_sha256"):
        words.append(f"weights sha256 {str(extractor['weights_sha256'])[:16]}")
    note = ", ".join(words) + "."
    if extractor.get("fid_name") != "fid":
        note += " These are not FID and not comparable with published FID."
    return note


def memory_section(memory: dict[str, Any]) -> str:
    teacher, student = memory.get("teacher") or {}, memory.get("student") or {}
    rows = []
    for key, (name, note) in MEMORY.items():
        values = [model.get(key) for model in (teacher, student) if model]
        if any(values):
            cells = [h.cell(mib(v), f"{v:,} B") if v else h.cell(DASH) for v in values]
            if len(values) == 2:
                cells.append(h.cell(ratio(*values) or DASH))
            rows.append([h.cell(name, note), *cells])
    if not rows:
        return ""
    columns = ["Teacher", "Student", "Smaller by"] if teacher and student else ["Model"]
    known = any(model.get(key) for model in (teacher, student) for key in PEAKS)
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
        h.picture(memory_bars(memory), BARS_ALT, css_class="chart") if known else "",
    )


def speed_section(speed: dict[str, Any], memory: dict[str, Any]) -> str:
    who = [name for name in ("teacher", "student") if speed.get(name) or memory.get(name)]
    models = [{**(memory.get(name) or {}), **(speed.get(name) or {})} for name in who]
    labels = {
        "images_per_second": "Images per second",
        "seconds": "Seconds in all",
        "num_images": "Images",
        "num_inference_steps": "Steps per image",
        "batch_size": "Batch size",
        "parameters": "Parameters",
        "macs": "MACs of one forward pass",
    }
    rows = []
    for key, label in labels.items():
        values = [model.get(key) for model in models]
        if any(value is not None for value in values):
            cells = [h.cell(number(value)) for value in values]
            if len(values) == 2 and key == "images_per_second":
                cells.append(h.cell(ratio(values[1], values[0]) or DASH, "faster"))
            elif len(values) == 2:
                smaller = ratio(values[0], values[1]) if key in ("parameters", "macs") else None
                cells.append(h.cell(smaller or "", "smaller" if smaller else ""))
            rows.append([h.cell(label), *cells])
    columns = ["Teacher", "Student", "Ratio"] if len(models) == 2 else ["Model"]
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
    return h.picture(png, alt, css_class="chart")


def plan_section(plan: dict[str, Any]) -> str:
    if not plan:
        return ""
    names = {
        "reduction": "Reduction",
        "teacher_strides": "Strides of the teacher",
        "student_strides": "Strides of the student",
        "prediction_type": "The student predicts",
        "red_placement": "RED placement",
        "red_norm": "RED norm",
        "red_start": "RED start",
        "start": "Start of the other weights",
    }
    settings = [(label, _plain(plan[key])) for key, label in names.items() if plan.get(key) is not None]
    rows = []
    for block in plan.get("blocks") or []:
        side = f"its {block['teacher_side']}, " if block.get("teacher_side") else ""
        cells = [
            h.cell(block.get("name", ""), code=True),
            h.cell(_plain(block.get("channels", ""))),
            h.cell(_size(block.get("resolution"))),
            h.cell(block.get("teacher_layer", ""), side + _size(block.get("teacher_resolution")), code=True),
        ]
        rows.append(cells)
    columns = ["RED block", "Channels", "Resolution", "Matched in the teacher to"]
    return h.section(
        "Plan",
        h.facts(settings, "Plan"),
        h.table(columns, rows, numbers_from=len(columns), label="RED blocks") if rows else "",
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key} · ")
        else:
            yield prefix + str(key), _plain(value)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _size(value: Any) -> str:
    if value is None:
        return DASH
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    return f" {TIMES} ".join(map(str, sides))


def mib(count: float | None) -> str:
    return DASH if count is None else f"{count / MIB:,.2f} MiB"


def ratio(a: float | None, b: float | None) -> str | None:
    return f"{a / b:.2f}{TIMES}" if a and b else None


def number(value: Any) -> str:
    """Integers with thousands separators, large counts in giga, other numbers with four digits."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}" if value < 10**9 else f"{value / 10**9:,.3g} G"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.1f}" if 1000 <= abs(value) < 10**9 else f"{value:.4g}"
