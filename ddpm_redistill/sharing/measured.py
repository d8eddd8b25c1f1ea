"""What a card says of an evaluation: distances with their definitions, memory by name, speed, what made it all."""

from collections.abc import Iterator, Mapping
from typing import Any

from .markdown import code, listed, mib, number, ratio, table, text, with_interval
from .student import Student, part, shown_ref

PAIRS = {
    "student_to_data": "student to data",
    "teacher_to_data": "teacher to data",
    "student_to_teacher": "student to teacher",
}
MEMORY = {
    "tensor_peak": "most bytes of tensors alive at once in an eager forward pass",
    "tensor_peak_lean": "the same of lean execution, which has the same outputs",
    "paper_peak": "the paper's: largest residual block, of a classifier also layer; long skips left out",
    "paper_peak_with_skips": "the same with live long skips",
    "red_paper_peak": "largest RED block by the paper's rule",
    "weights": "parameters and buffers",
    "decoder_peak": "tensor_peak of the decoder, which makes an image of the latents after all steps",
    "autoencoder_weights": "parameters and buffers of the autoencoder",
}


def measured_sections(student: Student, report: Mapping[str, Any]) -> Iterator[str]:
    """Each with its heading. What the report lacks is named, with the option that would measure it."""
    yield "## Distances\n\n" + distances(student, report)
    yield "## Memory\n\n" + memory(report)
    yield "## Speed\n\n" + speed(report)
    yield "## What measured it\n\n" + origin(report)


def picture_caption(report: Mapping[str, Any] | None) -> str:
    names = [name for name in ("teacher", "student") if part(report, "memory", name)]
    noise = " Teacher and student start from the same noise." if len(names) == 2 else ""
    return f"First images of each set, not chosen; {sampler(report)}.{noise}"


def sampler(report: Mapping[str, Any] | None) -> str:
    made, steps = part(report, "provenance"), part(report, "distances").get("num_inference_steps")
    more = f", spacing {made['spacing']}" if made.get("spacing") else ""
    more += f", eta {number(made['eta'])}" if made.get("eta") else ""
    return text(f"{made.get('scheduler') or 'an unnamed sampler'}, {number(steps)} steps{more}")


def distances(student: Student, report: Mapping[str, Any]) -> str:
    found = part(report, "distances")
    extractor = part(found, "extractor")
    frechet, kid = str(extractor.get("fid_name") or "fid"), str(extractor.get("kid_name") or "kid")
    there = {pair: part(found, pair) for pair in PAIRS if part(found, pair)}
    known = (frechet, kid, "precision", "recall")
    columns = [name for name in known if any(name in values for values in there.values())]
    rows = [[PAIRS[pair], *(with_interval(values, name) for name in columns)] for pair, values in there.items()]
    count = number(found.get("num_images"))
    lines = [
        f"Between sets of {count} images each, sampled by {sampler(report)}. In brackets 95% intervals: where the"
        " figure would fall with other images, as many, of the same model.",
        table(["", *map(code, columns)], rows),
        "\n".join(f"- {line}" for line in definitions(extractor, frechet, kid, columns)),
    ]
    data = part(report, "provenance").get("data")
    if isinstance(data, str):
        images = number(part(report, "provenance").get("num_data_images"))
        lines.append(f"The data: {code(shown_ref(data))}, {images} images of it.")
    warnings = found.get("warnings")
    lines += [f"Note: {text(warning)}." for warning in (warnings if isinstance(warnings, list) else ())]
    measured = part(report, "provenance").get("teacher_sha256")
    if measured and student.teacher_sha256 and measured != student.teacher_sha256:
        lines.append(f"The teacher in this section is another one than it was distilled from: sha256 {code(measured)}.")
    if "student_to_data" not in there:
        lines.append("No distance to data was measured: `ddpm-redistill evaluate --data DATA` does.")
    if "student_to_teacher" not in there:
        lines.append("No teacher was measured beside it: `ddpm-redistill evaluate --teacher TEACHER` does.")
    return "\n\n".join(lines)


def definitions(extractor: Mapping[str, Any], frechet: str, kid: str, columns: list[str]) -> Iterator[str]:
    name = text(extractor.get("name") or "an unnamed extractor")
    by_inception = frechet == "fid"
    of = "Inception's, by torch-fidelity" if by_inception else name
    if frechet in columns:
        other = "" if by_inception else " It is not FID, and compares with no FID."
        yield (
            f"{code(frechet)}: Frechet distance between Gaussians fitted to the features of both sets ({of}); lower is"
            f" nearer. It grows as n falls: only figures of equal n and equal sampling compare.{other}"
        )
    if kid in columns:
        yield f"{code(kid)}: squared maximum mean discrepancy of the same features, cubic kernel; lower is nearer."
    if "precision" in columns:
        yield (
            "`precision`, `recall`: shares of the first set's samples near the second set, and the reverse, by the"
            " third nearest neighbour; higher is better."
        )


def memory(report: Mapping[str, Any]) -> str:
    teacher, student = (part(report, "memory", name) for name in ("teacher", "student"))
    rows = []
    for key, definition in MEMORY.items():
        if student.get(key) or teacher.get(key):
            row = [code(key), definition, mib(student.get(key))]
            rows.append([*row, mib(teacher.get(key)), ratio(teacher.get(key), student.get(key))] if teacher else row)
    head = ["", "what it counts", "student", *(["teacher", "teacher / student"] if teacher else [])]
    lead = (
        "Of one forward pass of one image in 32-bit floats; activations, but for the weights. Each name is a quantity"
    )
    return f"{lead} of its own.\n\n{table(head, rows)}" if rows else "The report has no memory."


def speed(report: Mapping[str, Any]) -> str:
    found = {name: part(report, "speed", name) for name in ("student", "teacher")}
    columns = {"images_per_second": "images/s", "num_inference_steps": "steps", "batch_size": "batch"}
    keys = [key for key in columns if any(key in values for values in found.values())]
    rows = [[name, *(number(values.get(key)) for key in keys)] for name, values in found.items() if values]
    made = part(report, "provenance")
    where = f"On {text(made.get('device') or 'an unnamed device')}, {number(made.get('cpu_threads'))} CPU threads."
    return f"{where}\n\n{table(['', *(columns[key] for key in keys)], rows)}" if rows else "The report has no speed."


def origin(report: Mapping[str, Any]) -> str:
    made = part(report, "provenance")
    versions = ", ".join(
        f"{name} {made[name]}" for name in ("python", "torch", "diffusers", "accelerate") if name in made
    )
    sampled = ("seed", number(made.get("seed"))), ("steps", text(listed(made.get("num_inference_steps"))))
    rows = [
        ["sha256 of the student's weights", code(made.get("model_sha256"))],
        *(map(list, sampled) if "seed" in made else ()),
        ["time", text(made.get("time") or "not recorded")],
        ["versions", text(versions)],
    ]
    return table(["", ""], rows)
