"""``StudentPlan``: what is changed to make the student, as data. Printed, checked and saved before it is applied.

A student can be the teacher of another. Its plan is then of the whole way, as if from the network that the first
teacher was: ``reduction`` is the product, and ``teacher_strides`` say what of it the teacher had already.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..config import StudentConfig
from ..errors import UserError
from ..recipes import DEFAULT, RECIPES
from .network import Resampling, base_config, is_student, resampling_table, widened

REDUCTIONS = (2, 4, 8)
"""Of a student in all, whatever its teacher is."""
LARGEST_FACTOR = 16
"""Of ``widen``: weights grow with its square."""


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
    """All that distinguishes a student from its teacher, and what each of its RED blocks is aligned with.

    ``reduction`` is of all feature maps, an image's pixels a side over those of the first map's; ``teacher_strides``
    begin with the teacher's own, 1 where that is no student.
    """

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
        """What ``plan_student`` was asked for: its reduction is from teacher to student."""
        options = {field.name: getattr(self, field.name) for field in fields(StudentConfig)}
        step = self.reduction // self.teacher_strides[0]
        return StudentConfig(**{**options, "reduction": step, "widen": list(self.widen)})

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
        for name in ("teacher_strides", "student_strides", "widen", "sample_size"):
            value = getattr(made, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(type(number) is int and number >= 1 for number in numbers):
                raise UserError(f"not a student plan: {name} is {value!r}, which must be whole numbers from 1")
        if made.reduction not in [made.teacher_strides[0] * step for step in REDUCTIONS]:
            raise UserError(
                f"not a student plan: reduction is {made.reduction}, of a teacher of {made.teacher_strides[0]}"
            )
        return made

    def __str__(self) -> str:
        step = self.options.reduction
        in_all = f" than its teacher's, a student's: {self.reduction}x in all" if step != self.reduction else ""
        lines = [
            f"strides {list(self.teacher_strides)} -> {list(self.student_strides)}: feature maps"
            f" {step}x smaller a side{in_all}",
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
    """Plan a student of the network with this config, a ``UNet2DModel``'s or a student's; options left open are the
    default recipe's.

    No weights and no arithmetic: shapes come from one pass over the meta device.

    Raises:
        UserError: the teacher cannot be reduced so, with the reason.
    """
    return plan_from_table(teacher_config, teacher_table(teacher_config), options)


def plan_from_table(
    teacher_config: dict[str, Any], table: list[Resampling], options: StudentConfig | None = None
) -> StudentPlan:
    """``plan_student`` with the teacher's table (``teacher_table``), for whoever makes several plans of one teacher."""
    given = {k: v for k, v in asdict(options or StudentConfig()).items() if v is not None}
    chosen = {**RECIPES[DEFAULT]["student"], **given}
    step, moved = chosen["reduction"], int(chosen["reduction"]).bit_length() - 1
    if step not in REDUCTIONS:
        raise UserError(f"reduction {step} is not supported: choose 2, 4 or 8")
    downs = [row for row in table if row.kind == "down"]
    strided = [row.stride for row in downs if row.stride > 1]
    teacher_strides = (table[0].stride, *(row.stride for row in downs))
    _check_reduction(step, teacher_strides[0], len(strided))
    reduction = teacher_strides[0] * step
    student_strides = (reduction, *strided[: len(strided) - moved], *([1] * (len(downs) - len(strided) + moved)))
    widen = tuple(chosen.get("widen", [1] * len(teacher_strides)))
    if len(widen) != len(teacher_strides) or not all(isinstance(f, int) and 1 <= f <= LARGEST_FACTOR for f in widen):
        raise UserError(
            f"student.widen is {list(widen)}: give {len(teacher_strides)} whole numbers from 1 to {LARGEST_FACTOR},"
            f" one for each level of this teacher, as {[*[1] * (len(teacher_strides) - 1), 2]}"
        )
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
        blocks=_place_red(own_table(teacher_config, table, widen), table, moved, chosen["red_placement"]),
    )


def teacher_table(teacher_config: dict[str, Any]) -> list[Resampling]:
    """``resampling_table`` of a network that can be a teacher. Raises UserError as that, and of a widened student."""
    made_by = StudentPlan.from_dict(teacher_config.get("student_plan") or {}) if is_student(teacher_config) else None
    if made_by and made_by.widens:
        raise UserError("this teacher is a student that is widened: give the teacher that it was made from")
    return resampling_table(teacher_config)


def own_table(teacher_config: dict[str, Any], table: list[Resampling], widen: tuple[int, ...]) -> list[Resampling]:
    """The paths and channels of a student's own layers: its teacher's before all RED blocks, ``widen`` times as wide.

    ``table``: the teacher's.
    """
    config = base_config(teacher_config)
    return table if config is teacher_config and max(widen) == 1 else resampling_table(widened(config, widen))


def _check_reduction(step: int, had: int, strided: int) -> None:
    """Raises UserError unless a teacher of reduction ``had`` and so many strided levels can be reduced ``step`` times
    more."""
    largest = min(2**strided, REDUCTIONS[-1] // had)
    if step <= largest:
        return
    needed = step.bit_length() - 1
    if had == 1:
        reason = f"reduction {step} needs {needed} strided levels, this teacher has {strided}"
    elif step <= 2**strided:
        reason = f"reduction {step} of a student that is {had}x smaller a side is {had * step} in all, 8 is the most"
    else:
        reason = (
            f"reduction {step} needs {needed} strided levels, this teacher, a student {had}x smaller a side already,"
            f" has {strided} left"
        )
    most = "it cannot be reduced further" if had > 1 and largest == 1 else f"the largest that it can take is {largest}"
    raise UserError(f"{reason}: {most}")


def _place_red(own: list[Resampling], table: list[Resampling], moved: int, placement: str) -> tuple[RedPlacement, ...]:
    """RED blocks in the order of the forward; student stage i meets teacher stage i + moved, at the same resolution.

    own: ``own_table``. table: the teacher's. Of a teacher that is a student itself the strided levels alone are stages.
    """
    own_downs, own_ups = ([row for row in own if row.kind == kind] for kind in ("down", "up"))
    downs, ups = ([row for row in table if row.kind == kind and row.stride > 1] for kind in ("down", "up"))
    own_ups = own_ups[len(own_ups) - len(ups) :]  # the first are the deepest, which the teacher does not stride
    strided = len(downs) - moved
    sides = (("red_in", "input"), ("red_out", "output"))

    def block(layer: Resampling, side: str, match: Resampling, teacher_side: str) -> RedPlacement:
        # Student channels are those of the student's own layer; the resolution is the matched layer's. Where the
        # teacher has RED blocks around that, its map is what the layer reads, or what leaves the last of them.
        student_end, teacher_end = (0 if side == "red_in" else 1), (0 if teacher_side == "input" else 1)
        return RedPlacement(
            name=f"{layer.path}.{side}",
            channels=layer.channels[student_end],
            resolution=match.resolution[teacher_end],
            teacher_layer=match.reads if teacher_side == "input" else match.path,
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
