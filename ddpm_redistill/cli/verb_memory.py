"""What ``memory`` does: of networks what a pass takes, of exported programs what was planned for one."""

import json
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ..errors import UserError
from ..units import MIB, parse_bytes
from .collector import collector_off
from .text import live_at_peak_table, memory_table
from .verbs import quiet_libraries

OF_NETWORKS = {"batch_size": 1, "image_size": None, "dtype": "float32", "lean": None, "timeline": None}
"""Options that a program has no use for, and their defaults."""


def run_memory(arguments: Namespace) -> None:
    if is_program(arguments.model) or is_program(arguments.teacher or ""):
        memory_of_programs(arguments)
    else:
        memory_of_networks(arguments)


def is_program(ref: str) -> bool:
    return ref.lower().endswith(".pte")


@collector_off()
def memory_of_networks(arguments: Namespace) -> None:
    import torch

    from ..families.registry import find_network
    from ..pipelines.lean import LEAN_SETTINGS, CannotRunLeanError
    from ..sources.latent_images import side_of
    from ..students.decoder_memory import decoder_memory
    from ..students.footprint import memory_report, network_memory, network_of

    quiet_libraries()
    limit = None if arguments.fail_over is None else parse_bytes(arguments.fail_over)
    folder = None if arguments.timeline is None else Path(arguments.timeline)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give another --timeline")
    refs = {"teacher": arguments.teacher, "model": arguments.model}
    found = {name: find_network(ref) for name, ref in refs.items() if ref is not None}
    models = {name: model for name, (_, model) in found.items()}
    side = side_of(arguments.image_size, None, models["model"].pixels_per_latent)
    sizes: dict[str, Any] = {name: side or family.size_of(model.config) for name, (family, model) in found.items()}
    unets = {
        name: network_of(model.config if side is None else family.sized(model.config, side))
        for name, (family, model) in found.items()
    }
    for model in models.values():
        model.say()
    at = {"batch_size": arguments.batch_size, "image_size": side, "dtype": getattr(torch, arguments.dtype)}

    memory = {name: memory_report(unet, settings=LEAN_SETTINGS, **at) for name, unet in unets.items()}
    for name, model in models.items():
        if model.autoencoder:
            memory[name] |= decoder_memory(model.autoencoder.config, sizes[name])
    execution, judged = "eager", memory["model"]
    if arguments.lean:
        try:
            lean = network_memory(unets["model"], **at, lean=arguments.lean)
        except CannotRunLeanError as error:
            raise UserError(f"--lean {arguments.lean}: {error}") from error
        execution, judged = f"lean {arguments.lean}", lean.to_dict()
    if folder is not None:
        from ..evaluation.pages.timeline import timeline_picture, write_timeline_csv

        timelines = {name: network_memory(unet, **at).timeline for name, unet in unets.items()}
        if arguments.lean:
            timelines[f"model, {execution}"] = lean.timeline
        folder.mkdir(parents=True, exist_ok=True)
        write_timeline_csv(folder / "timeline.csv", timelines)
        (folder / "timeline.png").write_bytes(timeline_picture(timelines))
    if arguments.json:
        pixels = arguments.image_size or sizes["model"] * models["model"].pixels_per_latent
        settings = {"batch_size": arguments.batch_size, "image_size": pixels, "dtype": arguments.dtype}
        result = {"model": arguments.model, **settings, "memory": memory["model"]}
        if arguments.teacher is not None:
            result |= {"teacher": arguments.teacher, "teacher_memory": memory["teacher"]}
        print(json.dumps(result, indent=2))
    else:
        print(memory_table(memory, by_setting=True))
        print(live_at_peak_table(judged, f"the model, {execution}"))
    fail_when_over(f"tensor_peak of {arguments.model}, {execution},", judged["tensor_peak"], limit, arguments.fail_over)


def memory_of_programs(arguments: Namespace) -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UserError("the memory of a program needs flatbuffers: pip install 'ddpm-redistill[export]'") from None
    from ..export.program_file import open_program

    limit = None if arguments.fail_over is None else parse_bytes(arguments.fail_over)
    refs = {"teacher": arguments.teacher, "model": arguments.model}
    refs = {name: ref for name, ref in refs.items() if ref is not None}
    programs = [ref for ref in refs.values() if is_program(ref)]
    if len(programs) < len(refs):
        raise UserError(f"{programs[0]} is a program and the other is not: give two programs, or two networks")
    wrong = next((key for key, default in OF_NETWORKS.items() if arguments[key] != default), None)
    if wrong:
        raise UserError(f"--{wrong} is for networks: the memory of {programs[0]} was planned when it was exported")
    found = {name: open_program(ref) for name, ref in refs.items()}
    batches = {name: program.batch_size for name, program in found.items()}
    if len(set(batches.values())) > 1:
        told = " and ".join(map(str, batches.values()))
        raise UserError(f"the programs are of {told} images a call: export both with the same --batch_size")
    memory = {name: program.memory for name, program in found.items()}
    if arguments.json:
        model = found["model"]
        settings = {"batch_size": model.batch_size, "image_size": model.image_size, "dtype": "float32"}
        result = {"model": arguments.model, **settings, "memory": memory["model"]}
        if "teacher" in refs:
            result |= {"teacher": refs["teacher"], "teacher_memory": memory["teacher"]}
        print(json.dumps(result, indent=2))
    else:
        print(memory_table(memory))
    arena = memory["model"]["planned_arena"]
    fail_when_over(f"planned_arena of {arguments.model}", arena, limit, arguments.fail_over)


def fail_when_over(what: str, size: int, limit: int | None, text: str | None) -> None:
    """Exit with 1 and a line when ``size`` is over ``limit``, both in bytes; ``text`` is how a person wrote it."""
    if limit is not None and size > limit:
        over = f"{(size - limit) / MIB:.4f} MiB over {text}"
        print(f"ddpm-redistill: {what} is {size / MIB:.4f} MiB ({size} B): {over}", file=sys.stderr)
        sys.exit(1)
