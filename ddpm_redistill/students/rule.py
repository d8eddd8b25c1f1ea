"""The paper's rule (Chen et al., TMLR 2025, arXiv 2406.03744, section 3.1): which layers change their stride in a
student, and where its RED blocks stand, for any network with a resampling table.

The stem takes the factor; as much stride is taken away further in: from the pooling behind the stem first, which would
only shrink what the stem has shrunk, then from the deepest layers. RED blocks stand behind the stem, before and behind
every layer that still strides, and before the head of a UNet, each matched to the teacher's layer of the same
resolution.
"""

from dataclasses import replace

from ..core.resampling import Resampling, TokenMap
from ..errors import UserError
from ..pipelines.edits import Edit, Head, Red, Stem, Stride, Tokens, Width

DOWN = ("pool", "down")


def strides_of(table: list[Resampling]) -> tuple[int, ...]:
    """Of the layers that reduce the resolution, the stem first."""
    return tuple(row.stride for row in table if row.kind in ("stem", *DOWN))


def without_stride(table: list[Resampling], step: int) -> tuple[int, ...]:
    """The strides of a network's student whose maps are ``step`` times smaller a side.

    Raises:
        UserError: the network has not so many strided layers of stride 2 to give.
    """
    stem, *downs = [row for row in table if row.kind in ("stem", *DOWN)]
    strides = [row.stride for row in downs]
    strided = [i for i, row in enumerate(downs) if row.stride > 1]
    pools = [i for i in strided if downs[i].kind == "pool"]
    given, taken = pools + [i for i in reversed(strided) if i not in pools], 1
    while taken < step and given:
        i = given.pop(0)
        taken, strides[i] = taken * strides[i], 1
    if taken != step:
        raise UserError(f"reduction {step} cannot be taken from strides {list(strides_of(table))}")
    return (stem.stride * step, *strides)


def stride_edits(own: list[Resampling], strides: tuple[int, ...], reduction: int, widen: tuple[int, ...]) -> list[Edit]:
    """What makes ``strides`` of a network without edits, in the order in which it is applied.

    Args:
        own: the table of that network, which may be as wide as the student already.
        reduction: of all maps.
    """
    edits: list[Edit] = [Width(level=i, factor=factor) for i, factor in enumerate(widen) if factor > 1]
    downs, ups = [row for row in own if row.kind in DOWN], [row for row in own if row.kind == "up"]
    if reduction == 1:
        return edits
    edits.append(Stem(layers=own[0].layers, stride=strides[0]))
    mirrored = [*[()] * (len(downs) - len(ups)), *[row.layers for row in reversed(ups)]]
    for row, stride, mirror in reversed(list(zip(downs, strides[1:], mirrored, strict=True))):
        if row.stride > 1 and stride == 1:
            edits.append(Stride(layers=(*row.layers, *mirror)))
    if own[-1].kind == "head":
        edits.append(Head(path=own[-1].layers[0], factor=reduction))
    return edits


def red_edits(
    own: list[Resampling], table: list[Resampling], strides: tuple[int, ...], placement: str, norm: str, start: str
) -> list[Red]:
    """RED blocks in the order of the forward.

    Args:
        own: the table of the student's own layers, before all edits: their paths and channels.
        table: the teacher's.
        strides: the student's.
        placement: full, outer (behind the stem, before the head) or none.
    """
    if placement == "none":
        return []
    matches = {kind: [row for row in table if row.kind in kinds and row.stride > 1] for kind, kinds in KINDS.items()}
    stem, *rest = own
    size = -(-stem.resolution[0] // strides[0])
    blocks = [_red(stem, "red_out", size, matches["down"], "output", norm, start)]
    inner: list[Red] = []
    downs = [row for row in rest if row.kind in DOWN]
    ups = [row for row in rest if row.kind == "up"]
    for row, stride in zip(downs, strides[1:], strict=True):
        if stride > 1:
            inner.append(_red(row, "red_in", size, matches["down"], "input", norm, start))
            size = -(-size // stride)
            inner.append(_red(row, "red_out", size, matches["down"], "output", norm, start))
    for row, stride in zip(ups, reversed(strides[len(strides) - len(ups) :]), strict=True):
        if stride > 1:
            inner.append(_red(row, "red_in", size, matches["up"], "input", norm, start))
            size *= stride
            inner.append(_red(row, "red_out", size, matches["up"], "output", norm, start))
    if placement == "full":
        blocks += inner
    if own[-1].kind == "head":
        blocks.append(_red(own[-1], "red_in", size, matches["up"], "input", norm, start))
    return blocks


def kept_red_edits(blocks: list[Red], table: list[Resampling]) -> list[Red]:
    """The RED blocks of a teacher in a student with maps of the same size, each matched to the teacher's own.

    Args:
        table: the teacher's.
    """
    rows = {row.path: row for row in table}
    return [
        replace(
            block,
            teacher_layer=rows[block.path].reads if block.side == "red_in" else block.path,
            teacher_side="input" if block.side == "red_in" else "output",
            teacher_channels=block.channels,
        )
        for block in blocks
    ]


def token_edits(own: TokenMap, table: list[Resampling], placement: str, norm: str, start: str) -> list[Edit]:
    """What makes the tokens of a student a map that is matched to its teacher's of the same resolution, where that
    comes to it, with the paper's RED block on it unless ``placement`` is none.

    Args:
        table: the teacher's.

    Raises:
        UserError: the teacher has no map of this resolution.
    """
    match = next((row for row in table if row.resolution[1] == own.resolution), None)
    if match is None:
        sides = sorted({row.resolution[1] for row in table}, reverse=True)
        raise UserError(
            f"the student's tokens are a map of {own.resolution} a side, and the teacher's maps are of"
            f" {', '.join(map(str, sides))}: choose patches that make one of these of {table[0].resolution[0]} pixels"
        )
    edits: list[Edit] = [Tokens(path=own.path, prefix=own.prefix, side=own.resolution)]
    if placement != "none":
        edits.append(
            Red(
                path=own.path,
                side="red_out",
                channels=own.channels,
                resolution=own.resolution,
                norm=norm,  # type: ignore[arg-type]
                start=start,  # type: ignore[arg-type]
                teacher_layer=match.path,
                teacher_side="output",
                teacher_channels=match.channels[1],
            )
        )
    return edits


KINDS = {"down": DOWN, "up": ("up",)}


def _red(
    layer: Resampling, side: str, size: int, matches: list[Resampling], teacher_side: str, norm: str, start: str
) -> Red:
    """The block on one side of the student's ``layer``, where maps are ``size`` pixels a side. Channels are the
    student's own. Where the teacher has RED blocks around its layer, its map is what that reads, or what leaves the
    last of them.

    Raises:
        UserError: the teacher has no strided layer of this resolution.
    """
    end = 0 if teacher_side == "input" else 1
    match = next((row for row in matches if row.resolution[end] == size), None)
    if match is None:
        raise UserError(
            f"the teacher has no strided layer with an {teacher_side} of {size} pixels a side, for the RED block at"
            f" {layer.path}"
        )
    return Red(
        path=layer.path,
        side=side,  # type: ignore[arg-type]
        channels=layer.channels[0 if side == "red_in" else 1],
        resolution=size,
        norm=norm,  # type: ignore[arg-type]
        start=start,  # type: ignore[arg-type]
        teacher_layer=match.reads if teacher_side == "input" else match.path,
        teacher_side=teacher_side,  # type: ignore[arg-type]
        teacher_channels=match.channels[end],
    )
