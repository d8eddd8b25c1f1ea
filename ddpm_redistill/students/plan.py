"""``StudentPlan``: what is changed to make the student, as data. Printed, checked and saved before it is applied."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import torch
from diffusers import UNet2DModel

from ..config import RECIPES, StudentConfig
from ..core.taps import Tap, reading
from ..errors import UserError

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
LARGEST_FACTOR = 16
"""Of ``widen``: weights grow with its square."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """One row of the resampling table: a layer that changes resolution, measured on an example input.

    ``kind`` is stem, down, up or head; channels and resolutions (pixels a side) are (input, output). For the head
    the layer is the norm that opens it: that is where its RED block stands.
    """

    path: str
    kind: str
    stride: int
    channels: tuple[int, int]
    resolution: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RedPlacement:
    """One RED block: its module path in the student, and the side of the teacher's layer that it is matched to."""

    name: str
    channels: int
    resolution: int
    teacher_layer: str
    teacher_side: str
    teacher_channels: int
    teacher_resolution: int


@dataclass(frozen=True, kw_only=True)
class StudentPlan:
    """All that distinguishes a student from its teacher, and what each of its RED blocks is aligned with."""

    reduction: int
    widen: tuple[int, ...]
    sample_size: int
    teacher_strides: tuple[int, ...]
    student_strides: tuple[int, ...]
    red_placement: str
    red_norm: str
    red_start: str
    start: str
    head_start: str
    prediction_type: str
    blocks: tuple[RedPlacement, ...]

    @property
    def widens(self) -> bool:
        """Whether any level has more channels than the teacher's."""
        return max(self.widen) > 1

    @property
    def options(self) -> StudentConfig:
        """What ``plan_student`` was asked for."""
        options = {field.name: getattr(self, field.name) for field in fields(StudentConfig)}
        return StudentConfig(**{**options, "widen": list(self.widen)})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the student's config and ``plan.json`` hold this."""
        plan = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plan.items()}

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> "StudentPlan":
        """The inverse of ``to_dict``. Raises UserError naming what is missing, unknown or none of its values."""
        try:
            blocks = tuple(RedPlacement(**block) for block in plan["blocks"])
            tuples: dict[str, Any] = {key: tuple(plan[key]) for key in ("teacher_strides", "student_strides")}
            widen = tuple(plan.get("widen") or [1] * len(tuples["teacher_strides"]))  # older plans have none
            made = cls(**{"head_start": "teacher", **plan, **tuples, "widen": widen, "blocks": blocks})
        except (TypeError, KeyError) as error:
            raise UserError(f"not a student plan: {error}") from error
        for name, hint in get_type_hints(StudentConfig).items():
            kind = hint if get_origin(hint) is Literal else get_args(hint)[0]  # of kind | None
            if get_origin(kind) is Literal and getattr(made, name) not in get_args(kind):
                known = ", ".join(map(str, get_args(kind)))
                raise UserError(f"not a student plan: {name} is {getattr(made, name)!r}, which is none of {known}")
        return made

    def __str__(self) -> str:
        lines = [
            f"strides {list(self.teacher_strides)} -> {list(self.student_strides)}: feature maps"
            f" {self.reduction}x smaller a side",
            *([f"channels {list(self.widen)} times the teacher's, level by level"] if self.widens else []),
            f"the student starts from {'its teacher' if self.start == 'teacher' else 'random weights'} and predicts"
            f" {self.prediction_type}",
            f"{len(self.blocks)} RED blocks ({self.red_placement}, {self.red_norm} norm, {self.red_start} start)",
        ]
        width = max((len(block.name) for block in self.blocks), default=0)
        for block in self.blocks:
            lines.append(
                f"  {block.name:<{width}}  {block.resolution:>4} px {block.channels:>4} ch  <->  "
                f"{block.teacher_side} of {block.teacher_layer} ({block.teacher_channels} ch)"
            )
        return "\n".join(lines)


def plan_student(teacher_config: dict[str, Any], options: StudentConfig | None = None) -> StudentPlan:
    """Plan a student of the network with this ``UNet2DModel`` config; options left open are the default recipe's.

    No weights and no arithmetic: shapes come from one pass over the meta device.

    Raises:
        UserError: the teacher cannot be reduced so, with the reason.
    """
    given = {k: v for k, v in asdict(options or StudentConfig()).items() if v is not None}
    chosen = {**RECIPES["default"]["student"], **given}
    table = resampling_table(teacher_config)
    reduction, moved = chosen["reduction"], int(chosen["reduction"]).bit_length() - 1
    if reduction not in (2, 4, 8):
        raise UserError(f"reduction {reduction} is not supported: choose 2, 4 or 8")
    downs = [row for row in table if row.kind == "down"]
    if moved > len(downs):
        raise UserError(
            f"reduction {reduction} needs {moved} strided levels, this teacher has {len(downs)}:"
            f" the largest that it can take is {2 ** len(downs)}"
        )
    teacher_strides = (1, *(row.stride for row in downs))
    student_strides = (reduction, *teacher_strides[1 : len(downs) + 1 - moved], *([1] * moved))
    widen = tuple(chosen.get("widen", [1] * len(teacher_strides)))
    if len(widen) != len(teacher_strides) or not all(isinstance(f, int) and 1 <= f <= LARGEST_FACTOR for f in widen):
        raise UserError(
            f"student.widen is {list(widen)}: give {len(teacher_strides)} whole numbers from 1 to {LARGEST_FACTOR},"
            f" one for each level of this teacher, as {[*[1] * (len(teacher_strides) - 1), 2]}"
        )
    own = resampling_table(widened(teacher_config, widen)) if max(widen) > 1 else table
    return StudentPlan(
        reduction=reduction,
        widen=widen,
        sample_size=table[0].resolution[0],
        teacher_strides=teacher_strides,
        student_strides=student_strides,
        red_placement=chosen["red_placement"],
        red_norm=chosen["red_norm"],
        red_start=chosen["red_start"],
        start=chosen["start"],
        head_start=chosen["head_start"],
        prediction_type=chosen["prediction_type"],
        blocks=_place_red(own, table, moved, chosen["red_placement"]),
    )


def widened(config: dict[str, Any], widen: tuple[int, ...]) -> dict[str, Any]:
    """A ``UNet2DModel`` config with ``widen[i]`` times the channels in level i."""
    channels = build_on_meta(config).config.block_out_channels
    return {**config, "block_out_channels": [c * factor for c, factor in zip(channels, widen, strict=True)]}


def resampling_table(config: dict[str, Any]) -> list[Resampling]:
    """The resampling layers of a ``UNet2DModel`` config in the order of the forward: stem, downs, ups, head.

    Raises:
        UserError: a kind of network that has no student here.
    """
    unet = build_on_meta(config)
    config = dict(unet.config)  # what was left open has diffusers' defaults here
    size, depth = config["sample_size"], len(config["down_block_types"])
    size = size if isinstance(size, int) else size[0]
    downs = [f"down_blocks.{i}.downsamplers.0" for i in range(depth) if unet.down_blocks[i].downsamplers]
    ups = [f"up_blocks.{i}.upsamplers.0" for i in range(depth) if unet.up_blocks[i].upsamplers]
    if len(downs) != depth - 1 or len(ups) != depth - 1:
        raise UserError(f"teacher has {depth} levels but {len(downs)} down- and {len(ups)} up-samplers: not supported")
    if size % 2 ** len(downs):
        raise UserError(
            f"image size {size} does not divide by {2 ** len(downs)}, as the teacher's {len(downs)} down-samplers need"
        )
    kinds = {"conv_in": "stem", **dict.fromkeys(downs, "down"), **dict.fromkeys(ups, "up"), "conv_norm_out": "head"}
    taps = [Tap(path, side) for path in kinds for side in ("input", "output")]  # type: ignore[arg-type]
    example = torch.empty(1, config["in_channels"], size, size, device="meta")
    rows = []
    with torch.no_grad(), reading(unet, taps) as maps:
        unet(example, torch.zeros(1, dtype=torch.long, device="meta"))
        for path, kind in kinds.items():
            before, after = maps[Tap(path, "input")], maps[Tap(path, "output")]
            resolution = (before.shape[-1], after.shape[-1])
            rows.append(
                Resampling(
                    path=path,
                    kind=kind,
                    stride=max(resolution) // min(resolution),
                    channels=(before.shape[1], after.shape[1]),
                    resolution=resolution,
                )
            )
    return rows


def build_on_meta(config: dict[str, Any]) -> UNet2DModel:
    """The network without memory for its weights. Raises UserError with the reason when it is not a plain DDPM UNet."""
    reason = _unsupported(config)
    if reason:
        raise UserError(f"this teacher cannot be distilled: {reason}")
    try:
        with torch.device("meta"):
            return cast(UNet2DModel, UNet2DModel.from_config(config)).eval()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"diffusers cannot build this teacher's config: {error}") from error


def _unsupported(config: dict[str, Any]) -> str | None:
    size = config.get("sample_size")
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        return f"its sample_size is {size}, a single number of pixels a side is needed"
    for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for kind in config.get(key) or ():
            if kind not in known:
                return f"{key} has {kind}, supported are {', '.join(known)}"
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        return "it is class-conditional, and data sources here carry no labels"
    if config.get("time_embedding_type", "positional") == "fourier":
        return "its output is divided by a Fourier time embedding: a score-SDE network, not a DDPM"
    if config.get("in_channels") != config.get("out_channels"):
        channels = f"{config.get('in_channels')} channels in, {config.get('out_channels')} out"
        return f"it has {channels}, which must agree (no learned variance)"
    return None


def _place_red(own: list[Resampling], table: list[Resampling], moved: int, placement: str) -> tuple[RedPlacement, ...]:
    """RED blocks in the order of the forward; student stage i meets teacher stage i + moved, at the same resolution.

    own: the teacher's table with the student's widths. table: the teacher's.
    """
    own_downs, downs = ([row for row in rows if row.kind == "down"] for rows in (own, table))
    own_ups, ups = ([row for row in rows if row.kind == "up"] for rows in (own, table))
    strided = len(downs) - moved
    sides = (("red_in", "input"), ("red_out", "output"))

    def block(layer: Resampling, side: str, match: Resampling, teacher_side: str) -> RedPlacement:
        # Student channels are those of the student's own layer; the resolution is the matched layer's.
        student_end, teacher_end = (0 if side == "red_in" else 1), (0 if teacher_side == "input" else 1)
        return RedPlacement(
            name=f"{layer.path}.{side}",
            channels=layer.channels[student_end],
            resolution=match.resolution[teacher_end],
            teacher_layer=match.path,
            teacher_side=teacher_side,
            teacher_channels=match.channels[teacher_end],
            teacher_resolution=match.resolution[teacher_end],
        )

    if placement == "none":
        return ()
    first = block(own[0], "red_out", downs[moved - 1], "output")
    last = block(own[-1], "red_in", ups[len(ups) - moved], "input")
    if placement == "outer":
        return (first, last)
    encoder = [block(own_downs[i], side, downs[i + moved], end) for i in range(strided) for side, end in sides]
    decoder = [block(own_ups[i + moved], side, ups[i], end) for i in range(strided) for side, end in sides]
    return (first, *encoder, *decoder, last)
