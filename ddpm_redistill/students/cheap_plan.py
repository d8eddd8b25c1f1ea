"""Which convolutions of a student are cheap, and how that is said."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ..config import StudentConfig
from ..core.resampling import BlockConv
from ..errors import UserError
from ..pipelines.cheap import CheapKind, parse_kind
from ..pipelines.edits import Cheap

FULL = "S"
"""As ``student.cheap``: every convolution stays itself."""


def cheap_edits(layers: Sequence[BlockConv], cheap: str | list[str], norm: str) -> list[Cheap]:
    """Of the convolutions of residual blocks those that become cheap, in the order of the forward.

    Args:
        cheap: a kind for all, or one for each level.

    Raises:
        UserError: a kind that is none, other than one for each level, or channels that one does not divide.
    """
    levels = len({layer.level for layer in layers})
    kinds = [_parsed(kind) for kind in (cheap if isinstance(cheap, list) else [cheap])]
    if not layers:
        raise UserError(
            "student.cheap is set, and no 3x3 convolution of a residual block is known in this network: leave it out"
        )
    if not isinstance(cheap, list):
        kinds *= levels
    if len(kinds) != levels:
        raise UserError(
            f"student.cheap has {len(kinds)} kinds: give one for all, or one for each of the {levels} levels of this"
            " network"
        )
    edits = []
    for layer in layers:
        kind = kinds[layer.level]
        if kind.is_full:
            continue
        try:
            kind.sizes(*layer.channels)
        except ValueError as error:
            made = f"{layer.channels[0]} to {layer.channels[1]} channels"
            raise UserError(f"student.cheap does not fit {layer.path} of {made}: {error}") from error
        edits.append(Cheap(path=layer.path, convolution=str(kind), norm=norm))  # type: ignore[arg-type]
    return edits


def _parsed(kind: str) -> CheapKind:
    try:
        return parse_kind(kind)
    except ValueError as error:
        raise UserError(f"student.cheap: {error}") from error


def cheap_lines(edits: Sequence[Cheap]) -> Iterator[str]:
    """For a person: a line for each run of layers with one kind."""
    for (convolution, norm), some in groupby(edits, lambda edit: (edit.convolution, edit.norm)):
        layers = [edit.path for edit in some]
        through = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else layers[0]
        count = f"{len(layers)} convolution{'s are' if len(layers) > 1 else ' is'}"
        yield f"{count} {convolution}, {norm} norm: {through}"


def kept_red(teacher: StudentConfig | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a student of reduction 1 says of its RED blocks, which are its teacher's.

    Args:
        teacher: the options of a teacher that is a student; another has none of these blocks.
        given: what a person said.

    Raises:
        UserError: others are asked for.
    """
    kept: dict[str, Any] = {"red_placement": "none"}
    if teacher is not None:
        kept = {name: getattr(teacher, name) for name in ("red_placement", "red_norm", "red_start")}
    for name, value in kept.items():
        if given.get(name, value) != value:
            raise UserError(
                f"student.{name} is {given[name]}, and a student of reduction 1 has the RED blocks of its teacher:"
                f" leave it out, or give {value}"
            )
    return kept
