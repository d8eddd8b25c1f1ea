"""The sections of report.html on how good the samples are: distances, sampling steps, pairs, timesteps, nearest images.

Each is a function from a part of the report to HTML; an absent part gives an empty one.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from PIL import Image

from . import template as h
from .charts import Point, histograms, step_curves, timestep_curves
from .pictures import png_bytes
from .text import (
    brackets,
    extractor_name,
    figure,
    figures,
    frechet_of,
    interval,
    listed,
    metric_name,
    number,
    part,
)

PAIRS = {
    "student_to_data": ("Student to data", "Model to data"),
    "teacher_to_data": ("Teacher to data", ""),
    "student_to_teacher": ("Student to teacher", ""),
}
NEAREST = {
    "student_to_data": "Student to data",
    "teacher_to_data": "Teacher to data",
    "data_to_data": "Data, to one another",
}
PAIRED = {
    "ssim": ("SSIM", "1 is equal"),
    "psnr": ("PSNR, dB", "higher is nearer"),
    "mse": ("MSE", "0 is equal"),
}


def distances_section(distances: dict[str, Any], compared: bool) -> str:
    pairs = {key: part(distances, key) for key in [*PAIRS, *distances] if "_to_" in key and part(distances, key)}
    if not pairs:
        return ""
    names = list(dict.fromkeys(n for values in pairs.values() for n in values if not n.endswith(("_std", "_interval"))))
    rows = []
    for key, values in pairs.items():
        title = PAIRS.get(key, (key.replace("_", " ").capitalize(),) * 2)[0 if compared else 1] or key
        rows.append([h.cell(title), *(_metric(values, name) for name in names)])
    extractor = part(distances, "extractor")
    count = number(distances.get("num_images"))
    lead = f"{count} images of each set, features of {extractor_name(extractor)}. Lower is nearer"
    lead += ", but precision, recall and F-score are better higher. " if {"precision", "recall"} & {*names} else ". "
    if any(interval(values, name) for values in pairs.values() for name in names):
        lead += "In brackets: 95% intervals. "
    if any(f"{name}_std" in values and not interval(values, name) for values in pairs.values() for name in names):
        lead += "KID is a mean over random subsets ± its standard deviation over them."
    return h.section(
        "Distances",
        *(h.paragraph(str(warning), "caution") for warning in listed(distances.get("warnings"))),
        h.paragraph(lead),
        h.table(["Pair", *map(metric_name, names)], rows, label="Distances"),
        _inception_scores(part(distances, "inception_score"), compared),
        h.paragraph(_extractor_note(extractor), "note") if extractor else "",
    )


def _metric(values: Mapping[str, Any], name: str) -> str:
    """A cell: the value and, under it, its interval or its spread."""
    spread = figure(values.get(f"{name}_std"))
    note = brackets(interval(values, name)) or ("" if spread is None else f"± {number(spread)}")
    return h.cell(number(values.get(name)), note)


def _inception_scores(scores: dict[str, Any], compared: bool) -> str:
    names = {"teacher": "Teacher", "student": "Student" if compared else "Model"}
    shown = [f"{names.get(who, who)} {number(part(scores, who).get('isc'))}" for who in scores if part(scores, who)]
    return h.paragraph(f"Inception Score, higher is better: {', '.join(shown)}.") if shown else ""


def _extractor_note(extractor: dict[str, Any]) -> str:
    words = [f"Extractor {extractor.get('name')}"]
    words += [f"{word} {extractor[key]}" for key, word in (("layer", "layer"), ("resize", "input")) if key in extractor]
    if extractor.get("weights_sha256"):
        words.append(f"weights sha256 {str(extractor['weights_sha256'])[:16]}")
    note = ", ".join(words) + "."
    if extractor.get("fid_name") != "fid":
        note += " These are not FID and not comparable with published FID."
    return note


def steps_section(steps: Any, distances: dict[str, Any], compared: bool) -> str:
    """``steps``: the sweep over numbers of sampling steps."""
    counts = [(figure(part(row).get("num_inference_steps")), part(row)) for row in listed(steps) if part(row)]
    rows_by_count = sorted(((count, row) for count, row in counts if count and count >= 1), key=lambda pair: pair[0])
    if not rows_by_count:
        return ""
    # the extractor is named once, beside the distances
    name = frechet_of({**distances, **rows_by_count[0][1]})
    pairs = [key for key in PAIRS if any(figure(part(row, key).get(name)) is not None for _, row in rows_by_count)]
    who = [one for one in ("student", "teacher") if any(_rate(row, one) is not None for _, row in rows_by_count)]
    model = "student" if compared else "model"
    columns = [PAIRS[key][0 if compared else 1] or key for key in pairs]
    rates = [f"Images/s, {model if one == 'student' else one}" for one in who]
    rows = []
    for count, row in rows_by_count:
        cells = [h.cell(number(part(row, key).get(name)), brackets(interval(part(row, key), name))) for key in pairs]
        rows.append([h.cell(f"{number(count)}\u00a0steps"), *cells, *(h.cell(number(_rate(row, one))) for one in who)])
    series = {}
    for key, line in (("teacher_to_data", "teacher"), ("student_to_data", model)):
        points = [
            Point(x=count, y=value, ends=interval(part(row, key), name))
            for count, row in rows_by_count
            if (value := figure(part(row, key).get(name))) is not None
        ]
        if points:
            series[line] = points
    lead = f"{metric_name(name)} with different numbers of sampling steps, one network evaluation each."
    alt = f"{metric_name(name)} to the data by sampling steps: the numbers of the table"
    return h.section(
        "Distance against sampling steps",
        h.paragraph(lead),
        h.picture(step_curves(series, f"{metric_name(name)} to the data"), alt, css_class="chart") if series else "",
        h.table(["", *columns, *rates], rows, label="Distance against sampling steps") if columns or rates else "",
    )


def _rate(row: Mapping[str, Any], who: str) -> int | float | None:
    return figure(part(row, "speed", who).get("images_per_second"))


def paired_section(paired: dict[str, Any]) -> str:
    """Teacher and student from the same noise, image by image."""
    rows, panels = [], {}
    quantiles = list(dict.fromkeys(q for key in PAIRED for q in part(paired, key, "quantiles")))
    for key, (title, note) in PAIRED.items():
        values = part(paired, key)
        if not values:
            continue
        spread = part(values, "quantiles")
        cells = [number(values.get("mean")), number(values.get("std")), *(number(spread.get(q)) for q in quantiles)]
        rows.append([h.cell(title, note), *map(h.cell, cells)])
        bins = _histogram(values)
        if bins:
            panels[title] = bins
    if not rows:
        return ""
    lead = (
        f"Teacher and student from the same noise, image by image, {number(paired.get('num_images'))} pairs: how far "
        "the student keeps the teacher's own image, which no distance between sets can see."
    )
    alt = f"Histograms over the pairs of {', '.join(panels)}; their quantiles are in the table"
    columns = ["", "Mean", "Std", *(f"{q}%" for q in quantiles)]
    return h.section(
        "The same noise, image by image",
        h.paragraph(lead),
        h.table(columns, rows, label="Errors between paired images"),
        h.picture(histograms(panels), alt, css_class="chart") if panels else "",
    )


def _histogram(values: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """Edges and counts, if they are whole and can be drawn."""
    bins = part(values, "histogram")
    edges = [edge for edge in figures(bins.get("edges")) if edge is not None]
    counts = [count for count in figures(bins.get("counts")) if count is not None]
    whole = len(edges) == len(counts) + 1 >= 2 and edges == sorted(edges) and edges[0] < edges[-1] and max(counts) > 0
    return (edges, counts) if whole else None


def timestep_section(errors: dict[str, Any], compared: bool) -> str:
    """Error of noise prediction by timestep."""
    timesteps, series = figures(errors.get("timesteps")), {}
    for who in ("teacher", "student"):
        values = figures(errors.get(who))
        points = [Point(x=t, y=v) for t, v in zip(timesteps, values, strict=False) if t is not None and v and v > 0]
        if points:
            series[who if compared or who == "teacher" else "model"] = points
    if not series:
        return ""
    middle = [f"{who} {number(median(point.y for point in points))}" for who, points in series.items()]
    lead = (
        f"Mean squared error of the predicted noise on {number(errors.get('num_images'))} real images, "
        f"by timestep. Median over the timesteps: {', '.join(middle)}. A network that predicts the sample has its "
        "error divided by the noise there is: large values at the first timesteps are errors nobody sees."
    )
    ends = [f"{who} {number(points[0].y)} to {number(points[-1].y)}" for who, points in series.items()]
    alt = f"Error by timestep, from {number(timesteps[0])} to {number(timesteps[-1])}: {', '.join(ends)}"
    return h.section(
        "Noise prediction by timestep",
        h.paragraph(lead),
        h.picture(timestep_curves(series), alt, css_class="chart"),
    )


def nearest_section(nearest: dict[str, Any], picture: Image.Image | None, num_data_images: Any, compared: bool) -> str:
    """Samples beside the data images that are nearest to them; ``num_data_images``: those that were searched."""
    quantiles = list(dict.fromkeys(q for key in NEAREST for q in part(nearest, key, "quantiles")))
    rows = []
    for key, title in NEAREST.items():
        values = part(nearest, key)
        if values:
            cells = [number(values.get("mean")), *(number(part(values, "quantiles").get(q)) for q in quantiles)]
            name = title if compared else title.replace("Student", "Model")
            rows.append([h.cell(name), *map(h.cell, cells)])
    if not rows and picture is None:
        return ""
    samples, searched = figure(nearest.get("num_samples")), figure(num_data_images)
    lead = (
        f"{'Samples' if samples is None else f'{number(samples)} samples'} and the images nearest to them among "
        f"{'those' if searched is None else f'the {number(searched)} images'} of the data in this evaluation, in the "
        "extractor's features. A model that copies them sits nearer to them than they sit to one another: read each "
        "row against the last. A copy of an image that is not among them does not show."
    )
    return h.section(
        "Nearest data images",
        h.paragraph(lead),
        h.picture(png_bytes(picture), "Samples, each above the data image nearest to it", css_class="nearest")
        if picture is not None
        else "",
        h.table(["", "Mean", *(f"{q}%" for q in quantiles)], rows, label="Distance to the nearest data image")
        if rows
        else "",
    )
