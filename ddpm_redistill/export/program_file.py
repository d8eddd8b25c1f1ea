"""What an ExecuTorch program that ``export`` wrote tells of itself; nothing of it is run, and ExecuTorch is not needed.

A ``.pte`` is a flatbuffer (https://flatbuffers.dev/internals) whose schema, executorch/exir/_serialize/program.fbs,
only grows: a field keeps its number. ExecuTorch itself gives these sizes in C++ alone (``MethodMeta`` of its runtime).
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..sources.image_files import one_line
from ..sources.onnx_model import DESCRIPTION, FORMAT

MAGIC = b"ET12eh00"
"""ExecuTorch's file identifier and the mark of its header, from byte 4 on."""
METHODS = 1
NAME, VALUES, BUFFERS = 0, 2, 8
VALUE, TEXT = 1, 0
"""Numbers of fields in the schema's tables Program, ExecutionPlan (a method), EValue and String."""


@dataclass(frozen=True)
class ProgramFile:
    """``memory``: bytes of ``planned_arena``, in which a call has its inputs, output and every activation, and of the
    ``file``, weights and all; ``batch_size`` and ``image_size`` (a side, or height and width) of a call."""

    memory: dict[str, int]
    batch_size: int
    image_size: Any


def is_program(ref: str) -> bool:
    return ref.lower().endswith(".pte")


def open_program(path: str) -> ProgramFile:
    """Raises UserError: there is no such file, or it is no whole program that ``export`` wrote."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    content = Path(path).read_bytes()
    try:
        if content[4:12] != MAGIC:
            raise ValueError("it does not begin as one")
        root, segments, size = struct.unpack_from("<I20xQQ", content)
        if len(content) < segments + size:
            raise ValueError(f"it has {len(content):,} bytes of {segments + size:,}")
        methods = {_text(content, each, NAME): each for each in _tables(content, root, METHODS)}
        if methods.keys() != {"forward", DESCRIPTION}:
            raise ValueError(f"its methods are {', '.join(methods)}")
        (value,) = _tables(content, methods[DESCRIPTION], VALUES)
        told = json.loads(_text(content, _followed(content, value, VALUE), TEXT))
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']!r} is not {FORMAT}")
        memory = {"planned_arena": _arena(content, methods["forward"]), "file": len(content)}
        return ProgramFile(memory, int(told["batch_size"]), told["network"]["sample_size"])
    except (KeyError, TypeError, ValueError, struct.error, RecursionError) as error:
        raise UserError(f"{path} is no whole ExecuTorch program that `export` wrote: {one_line(error)}") from error


def _arena(content: bytes, method: int) -> int:
    """The sum of a method's buffers but the first, which stands for constants and is passed over by the runtime."""
    start, length = _list(content, method, BUFFERS)
    return sum(struct.unpack_from(f"<{length}q", content, start)[1:])


def _tables(content: bytes, table: int, field: int) -> list[int]:
    """Where the tables of a list are; 2 at most, which is all that a program of ours has."""
    start, length = _list(content, table, field)
    if length > 2:
        raise ValueError(f"it has a list of {length}")
    places = range(start, start + 4 * length, 4)
    return [place + _u32(content, place) for place in places]


def _text(content: bytes, table: int, field: int) -> str:
    start, length = _list(content, table, field)
    return content[start : start + length].decode()


def _list(content: bytes, table: int, field: int) -> tuple[int, int]:
    """Where the elements of a field begin, and how many there are."""
    place = _followed(content, table, field)
    return place + 4, _u32(content, place)


def _followed(content: bytes, table: int, field: int) -> int:
    """Where a field's value is. A table begins with the way back to its list of fields: two sizes, then offsets."""
    fields = table - struct.unpack_from("<i", content, table)[0]
    slot = fields + 4 + 2 * field
    within = struct.unpack_from("<H", content, fields)[0] > 4 + 2 * field
    offset = struct.unpack_from("<H", content, slot)[0] if within else 0
    if not offset:
        raise ValueError("a field is missing")
    return table + offset + _u32(content, table + offset)


def _u32(content: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", content, place)[0])
