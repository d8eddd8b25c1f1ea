"""What an ExecuTorch program that ``export`` wrote tells of itself; nothing of it is run, and ExecuTorch is not needed,
its file format's library is.

A ``.pte`` is a flatbuffer (https://flatbuffers.dev/internals) whose schema, executorch/exir/_serialize/program.fbs,
only grows: a field keeps its number. ExecuTorch itself gives these sizes in C++ alone (``MethodMeta`` of its runtime).
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatbuffers.number_types import Int64Flags
from flatbuffers.table import Table

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
        methods = {_text(each, NAME): each for each in _tables(Table(content, root), METHODS)}
        if methods.keys() != {"forward", DESCRIPTION}:
            raise ValueError(f"its methods are {', '.join(methods)}")
        (value,) = _tables(methods[DESCRIPTION], VALUES)
        told = json.loads(_text(_table(value, VALUE), TEXT))
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']!r} is not {FORMAT}")
        memory = {"planned_arena": _arena(methods["forward"]), "file": len(content)}
        return ProgramFile(memory, int(told["batch_size"]), told["network"]["sample_size"])
    except (KeyError, TypeError, ValueError, struct.error, RecursionError) as error:
        raise UserError(f"{path} is no whole ExecuTorch program that `export` wrote: {one_line(error)}") from error


def _arena(method: Table) -> int:
    """The sum of a method's buffers but the first, which stands for constants and is passed over by the runtime."""
    place = _slot(method, BUFFERS)
    start = method.Vector(place)
    return sum(method.Get(Int64Flags, start + 8 * i) for i in range(1, method.VectorLen(place)))


def _tables(table: Table, field: int) -> list[Table]:
    """A list of tables; 2 at most, which is all that a program of ours has."""
    place = _slot(table, field)
    if table.VectorLen(place) > 2:
        raise ValueError(f"it has a list of {table.VectorLen(place)}")
    start = table.Vector(place)
    return [Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(table.VectorLen(place))]


def _table(table: Table, field: int) -> Table:
    return Table(table.Bytes, table.Indirect(table.Pos + _slot(table, field)))


def _text(table: Table, field: int) -> str:
    return str(table.String(table.Pos + _slot(table, field)).decode())


def _slot(table: Table, field: int) -> int:
    """Where in a table a field is; its first two entries are sizes."""
    place: int = table.Offset(4 + 2 * field)
    if not place:
        raise ValueError("a field is missing")
    return place
