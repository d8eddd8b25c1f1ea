"""What the command line shows of its results, as text."""

from typing import Any

from .units import MIB

PEAKS = ("paper_peak", "paper_peak_with_skips", "red_paper_peak", "tensor_peak", "weights")


def memory_table(memory: dict[str, dict[str, Any]]) -> str:
    """One row a definition, one column a network, MiB; with a teacher and a student, their ratio."""
    names = sorted(memory, reverse=True)  # teacher, student
    paired = {"teacher", "student"} <= set(names)
    header = f"{'memory, MiB':<24}" + "".join(f"{name:>12}" for name in names) + f"{'ratio' if paired else '':>9}"
    lines = [header]
    for peak in PEAKS:
        values = [memory[name][peak] for name in names]
        cells = "".join(f"{'undefined':>12}" if value is None else f"{value / MIB:>12.4f}" for value in values)
        if paired and memory["teacher"][peak] and memory["student"][peak]:
            cells += f"{memory['teacher'][peak] / memory['student'][peak]:>8.2f}x"
        lines.append(f"{peak:<24}{cells}")
    where = names[-1]
    lines.append(
        f"tensor_peak of the {where} is at {memory[where]['peak_operation']} in {memory[where]['peak_module']}"
    )
    return "\n".join(lines)


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    distances, speed = report["distances"], report["speed"]
    lines = [f"distances, {distances['num_images']} images"]
    for pair in ("student_to_data", "teacher_to_data", "student_to_teacher"):
        if pair in distances:
            cells = "  ".join(f"{name} {value:.4g}" for name, value in distances[pair].items())
            lines.append(f"  {pair.replace('_', ' '):<20}{cells}")
    for name, row in speed.items():
        lines.append(f"{name}: {row['images_per_second']:.1f} images/s at {row['num_inference_steps']} steps")
    return "\n".join([*lines, memory_table(report["memory"])])
