"""What the command line shows of its results, as text."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from ..units import MIB
from .text_accuracy import accuracy_lines

if TYPE_CHECKING:
    from ..sharing.push import Push
    from ..students.budget import BudgetPlan, Candidate
    from ..students.free_width import FreeWidth

PEAKS = ("paper_peak", "paper_peak_with_skips", "red_paper_peak", "tensor_peak", "tensor_peak_lean", "weights")
OF_LATENTS = ("decoder_peak", "autoencoder_weights")
OF_PROGRAMS = ("planned_arena", "file")
SHOWN_AT_PEAK = 6
MOST_CLASSES, LONGEST_NAME = 20, 24
"""Of the table by class: rows, and letters of a class's name."""


def memory_table(memory: dict[str, dict[str, Any]], by_setting: bool = False) -> str:
    """One row a definition, one column a network, MiB; with a teacher and its student, their ratio.

    ``by_setting``: a row for each setting of lean execution in place of the most saving one's.
    """
    names = sorted(memory, reverse=True)  # teacher first
    paired = len(names) == 2 and names[0] == "teacher"
    lines = [f"{'memory, MiB':<24}" + "".join(f"{name:>12}" for name in names) + f"{'ratio' if paired else '':>9}"]
    for label, values in _memory_rows([memory[name] for name in names], by_setting):
        cells = "".join(f"{'undefined':>12}" if value is None else f"{value / MIB:>12.4f}" for value in values)
        if paired and values[0] and values[1]:
            cells += f"{values[0] / values[1]:>8.2f}x"
        lines.append(f"{label:<24}{cells}")
    where = names[-1]
    if "peak_operation" in memory[where]:
        lines.append(
            f"tensor_peak of the {where} is at {memory[where]['peak_operation']} in {memory[where]['peak_module']}"
        )
    return "\n".join(lines)


def live_at_peak_table(profile: dict[str, Any], title: str) -> str:
    """The largest tensors alive at a tensor_peak, one a row, and the rest in one; their MiB add up to it."""
    tensors = profile["live_at_peak"]
    lines = [
        f"alive at the tensor_peak of {title}: {profile['tensor_peak'] / MIB:.4f} MiB at {profile['peak_operation']}"
        f" in {profile['peak_module'] or 'the network itself'}",
        f"{'MiB':>10}  {'shape':<22}{'made in':<40}by",
    ]
    for tensor in tensors[:SHOWN_AT_PEAK]:
        shape = " x ".join(map(str, tensor["shape"]))
        where = tensor["module"] or "the network itself"
        lines.append(f"{tensor['bytes'] / MIB:>10.4f}  {shape:<22}{where:<40}{tensor['operation']}")
    smaller = tensors[SHOWN_AT_PEAK:]
    if smaller:
        lines.append(f"{sum(tensor['bytes'] for tensor in smaller) / MIB:>10.4f}  {len(smaller)} smaller ones")
    return "\n".join(lines)


def _memory_rows(profiles: list[dict[str, Any]], by_setting: bool) -> list[tuple[str, list[int | None]]]:
    """(label, a value for each network); a definition that none of them carries is left out."""
    rows: list[tuple[str, list[int | None]]] = []
    for peak in (*PEAKS, *OF_LATENTS, *OF_PROGRAMS):
        if by_setting and peak == "tensor_peak_lean":
            settings = {setting: None for profile in profiles for setting in profile.get("lean", {})}
            rows += [(f"  lean, {setting}", [p.get("lean", {}).get(setting) for p in profiles]) for setting in settings]
        elif any(peak in profile for profile in profiles):
            rows.append((peak, [profile.get(peak) for profile in profiles]))
    return rows


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines; of several numbers of steps, a block each."""
    if "accuracy" in report:
        return "\n".join([*accuracy_lines(report), memory_table(report["memory"])])
    distances = report["distances"]
    lines = [f"distances, {distances['num_images']} images"]
    for row in report.get("steps") or [{**distances, "speed": report["speed"]}]:
        steps = row.get("num_inference_steps")
        if steps:
            lines.append(f"at {steps} steps")
        for pair in ("student_to_data", "teacher_to_data", "student_to_teacher"):
            if pair in row:
                lines.append(f"  {pair.replace('_', ' '):<20}{_figures(row[pair])}")
        rates = (f"{name} {speed['images_per_second']:.1f}" for name, speed in row["speed"].items())
        lines += [f"  {'images/s':<20}{'  '.join(rates)}"] if row["speed"] else []
    if "paired" in report:
        means = "  ".join(
            f"{name} {report['paired'][name]['mean']:.4g}"
            for name in ("mse", "psnr", "ssim")
            if name in report["paired"]
        )
        lines.append(f"image by image, student against teacher: {means}")
    if "classes" in report:
        lines.append(classes_table(report["classes"], distances["extractor"]["kid_name"]))
    lines += [f"note: {warning}" for warning in distances.get("warnings", ())]
    return "\n".join([*lines, memory_table(report["memory"])] if report["memory"] else lines)


def classes_table(classes: dict[str, Any], kid: str) -> str:
    """KID to the data by class, worst first: a row for each of the first ``MOST_CLASSES``, and the notes; these alone
    where no class has figures."""
    from ..evaluation.pages.text import worst_first

    rows, notes = worst_first(classes, kid), [f"note: {note}" for note in classes["notes"]]
    if not any(key.endswith("_to_data") for row in rows for key in row):
        return "\n".join(notes)
    sets = [name for name in ("student", "teacher", "data") if name in rows[0]["num_images"]]
    models = [name for name in sets if name != "data"]
    shown = rows[:MOST_CLASSES]
    width = max(len("class"), *(len(row["name"][:LONGEST_NAME]) for row in shown))
    columns = [f"{name} images" for name in sets] + [f"{name} KID" for name in models]
    lines = [f"{kid} to the data by class, worst first"]
    lines.append(f"  {'class':<{width}}" + "".join(f"{column:>16}" for column in columns))
    for row in shown:
        values = [row.get(f"{name}_to_data", {}).get(kid) for name in models]
        cells = [str(row["num_images"][name]) for name in sets] + [f"{v:.4g}" if v is not None else "-" for v in values]
        lines.append(f"  {row['name'][:LONGEST_NAME]:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
    more = len(rows) - len(shown)
    lines += [f"  {more} more classes in report.json"] if more else []
    return "\n".join([*lines, *notes])


def _figures(values: dict[str, Any]) -> str:
    """Each figure with its interval; spreads over subsets are left to the report."""
    shown = []
    for name, value in values.items():
        if not name.endswith(("_interval", "_std")):
            low_high = values.get(f"{name}_interval")
            bounds = f" [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""
            shown.append(f"{name} {value:.4g}{bounds}")
    return "  ".join(shown)


def free_width_text(free: FreeWidth) -> str:
    """What can be wider at no cost in tensor_peak, what it costs in parameters, and the option that asks for it."""
    levels = [str(i + 1) for i, factor in enumerate(free.widen) if factor > 1]
    if not levels:
        return "no level can be 2x wider at the same tensor_peak"
    named = f"levels {', '.join(levels)}" if len(levels) > 1 else f"level {levels[0]}"
    lean = {True: ", and tensor_peak_lean stays too", False: ", but tensor_peak_lean grows", None: ""}[free.lean]
    option = f"--student.widen [{','.join(map(str, free.widen))}]"
    millions = f"{free.parameters_before / 1e6:.2f} M -> {free.parameters / 1e6:.2f} M"
    return f"{named} can be 2x wider at the same tensor_peak (parameters {millions}){lean}: {option}"


def training_text(training: dict[str, int]) -> str:
    """What a training step takes, by ``training/step_memory.py``."""
    mebibytes = {name: value / MIB for name, value in training.items()}
    checkpointed = mebibytes.get("tensor_peak_checkpointed")
    saving = "" if checkpointed is None else f" {checkpointed:,.1f} with gradient checkpointing,"
    return (
        f"training at batch {training['batch_size']}: about {mebibytes['tensor_peak']:,.1f} MiB of tensors,{saving} of"
        f" which {mebibytes['held']:,.1f} are held from step to step"
    )


def budget_text(found: BudgetPlan) -> str:
    """The choice in a sentence, and every candidate that was tried with what the budget lacks for it."""
    chosen, what = found.chosen, "activations" if found.counts == "activations" else "activations and weights"
    if chosen:
        taken = mib(found.budget + chosen.over)
        lines = [f"{chosen} fits: {taken} of {mib(found.budget)}{'; no student is needed' * (chosen.reduction == 1)}"]
    else:
        lines = [nothing_fits(found)]
    lines.append(f"tried, the smallest change first ({what} of one image must fit):")
    width = max(len(str(candidate)) for candidate in found.candidates)
    for candidate in found.candidates:
        bound = "" if candidate.exact else "at least "
        verdict = "fits" if candidate.over <= 0 else f"misses by {bound}{mib(candidate.over)}"
        figures = f"{bound}{mib(candidate.activations)}".rjust(24) + f"{mib(candidate.weights):>16} weights"
        lines.append(f"  {candidate!s:<{width}}{figures}  {verdict}")
    return "\n".join([*lines, *(f"  left out: {reason}" for reason in found.skipped)])


def nothing_fits(found: BudgetPlan) -> str:
    """The budget, the nearest candidate and what it lacks, in one line."""
    near = found.nearest
    return f"nothing fits {mib(found.budget)} of {found.counts}: the nearest, {near}, misses by {mib(near.over)}"


def budget_commands(teacher: str, image_size: int | None, chosen: Candidate) -> str:
    """The commands that make and run what was chosen. ``image_size``: None is the teacher's own."""
    lines, model = [], teacher
    if chosen.reduction > 1:
        options = ["--student.reduction", str(chosen.reduction), "--student.red_placement", str(chosen.red_placement)]
        options += [] if image_size is None else ["--image_size", str(image_size)]
        data = [] if teacher == "builtin:digits" else ["--data", "DATA"]
        lines.append(shlex.join(["ddpm-redistill", "distill", "--teacher", teacher, *data, *options]))
        model = "runs/distill/student"
    elif image_size is not None:
        return f"`ddpm-redistill sample` draws images of the teacher's own size; at {image_size} run it from Python"
    options = ["--output", "samples", "--batch_size", "1"]
    options += ["--lean", chosen.lean] if chosen.lean else []
    options += ["--dtype", chosen.dtype] if chosen.dtype != "float32" else []
    return "\n".join([*lines, shlex.join(["ddpm-redistill", "sample", model, *options])])


def push_text(pushed: Push) -> str:
    """The files of a push, largest last, and where they are now, if anywhere."""
    lines = [f"{size:>14,} B  {path}" for path, size in sorted(pushed.files.items(), key=lambda item: item[1])]
    where = pushed.url or f"nothing was sent: without --dry_run these go to {pushed.repository}"
    return "\n".join([*lines, f"{sum(pushed.files.values()):>14,} B  in all", where])


def mib(size: int) -> str:
    """Bytes as MiB, or as they are where four digits would show nothing of them."""
    return f"{size / MIB:.4f} MiB" if size >= MIB // 100 else f"{size:,} B"
