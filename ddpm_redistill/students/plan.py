"""``StudentPlan``: what is changed to make the student, as data. Printed, checked and saved before it is applied.

A student can be the teacher of another. Its plan is then of the whole way, as if from the network that the first
teacher was: ``reduction`` is the product, and ``teacher_strides`` say what of it the teacher had already.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..config import StudentConfig
from ..core.resampling import Resampling
from ..errors import UserError
from ..families.registry import FAMILIES, family_named, family_of, find_family
from ..pipelines.edits import Cheap, Edit, Red, Tokens, Width, edit_to_dict
from ..pipelines.modeling_red_unet import edits_of
from .cheap_plan import cheap_edits, cheap_lines, kept_red
from .rule import DOWN, kept_red_edits, red_edits, stride_edits, strides_of, token_edits, without_stride

REDUCTIONS = (2, 4, 8)
"""Of a student in all, whatever its teacher is; 1 where its convolutions are cheap."""
REDUCTION = 2
"""Where nobody says otherwise."""
LARGEST_FACTOR = 16
"""Of ``widen``: weights grow with its square."""


@dataclass(frozen=True, kw_only=True)
class StudentPlan:
    """All that distinguishes a student from its teacher, and what each of its RED blocks is aligned with.

    Args:
        family: of both networks, a name in ``FAMILIES``.
        reduction: of all feature maps in all, the first network's pixels a side over the student's.
        sample_size: pixels a side of the images.
        teacher_strides, student_strides: of the layers that reduce the resolution, the stem first; the teacher's own,
            which is 1 where a student that is a teacher has lost it.
        options: what ``plan_student`` was asked for, with nothing left open; its reduction is from teacher to student.
        edits: of the network that the first teacher was, in the order in which they are applied.
    """

    family: str
    reduction: int
    sample_size: int
    teacher_strides: tuple[int, ...]
    student_strides: tuple[int, ...]
    options: StudentConfig
    edits: tuple[Edit, ...]

    @property
    def blocks(self) -> tuple[Red, ...]:
        """The RED blocks, in the order of the forward."""
        return tuple(edit for edit in self.edits if isinstance(edit, Red))

    @property
    def cheap(self) -> tuple[Cheap, ...]:
        """The cheap convolutions, in the order of the forward."""
        return tuple(edit for edit in self.edits if isinstance(edit, Cheap))

    @property
    def step(self) -> int:
        """The reduction from teacher to student."""
        return self.options.reduction or REDUCTION

    @property
    def widen(self) -> tuple[int, ...]:
        """For each level how many times as many channels as the teacher it has."""
        factors = {edit.level: edit.factor for edit in self.edits if isinstance(edit, Width)}
        return tuple(factors.get(level, 1) for level in range(len(self.teacher_strides)))

    @property
    def widens(self) -> bool:
        """Whether any level has more channels than the teacher's."""
        return max(self.widen) > 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the student's config and ``plan.json`` hold this."""
        return {
            "family": self.family,
            "reduction": self.reduction,
            "sample_size": self.sample_size,
            "teacher_strides": list(self.teacher_strides),
            "student_strides": list(self.student_strides),
            "options": asdict(self.options),
            "edits": [edit_to_dict(edit) for edit in self.edits],
        }

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> "StudentPlan":
        """The inverse of ``to_dict``, also of a plan that was written before there were edits.

        Raises:
            UserError: naming what is missing, unknown or none of its values.
        """
        try:
            strides = {name: tuple(plan[name]) for name in ("teacher_strides", "student_strides")}
            made = {**_converted(plan), **strides}
            edits = tuple(edits_of(plan, len(strides["teacher_strides"])))
            read = cls(**{**made, "options": StudentConfig(**made["options"]), "edits": edits})
        except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError) as error:
            raise UserError(f"not a student plan: {error}") from error
        read._check()
        return read

    def _check(self) -> None:
        """Raises UserError naming the first value that is none."""
        if self.family not in FAMILIES:
            raise UserError(f"not a student plan: family is {self.family!r}, which is none of {', '.join(FAMILIES)}")
        open_ones = get_type_hints(StudentConfig).keys() - family_named(self.family).default_student()
        for name, hint in get_type_hints(StudentConfig).items():
            kind = hint if get_origin(hint) is Literal else get_args(hint)[0]  # of kind | None
            value = getattr(self.options, name)
            if (
                get_origin(kind) is Literal
                and value not in get_args(kind)
                and not (value is None and name in open_ones)
            ):
                known = ", ".join(map(str, get_args(kind)))
                raise UserError(f"not a student plan: {name} is {value!r}, which is none of {known}")
        for name in ("teacher_strides", "student_strides", "widen", "sample_size"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(type(number) is int and number >= 1 for number in numbers):
                raise UserError(f"not a student plan: {name} is {value!r}, which must be whole numbers from 1")
        if self.options.architecture is not None:
            return  # its strides are not its teacher's
        step = self.step
        possible = REDUCTIONS if self.options.cheap is None else (1, *REDUCTIONS)
        if self.reduction not in possible or self.reduction % step:
            raise UserError(f"not a student plan: reduction is {self.reduction}, {step} from its teacher")
        if self.student_strides[0] != self.teacher_strides[0] * step:
            raise UserError(
                f"not a student plan: reduction is {step}, of strides {self.teacher_strides[0]} and"
                f" {self.student_strides[0]}"
            )

    def __str__(self) -> str:
        step = self.step
        in_all = f" than its teacher's, a student's: {self.reduction}x in all" if step != self.reduction else ""
        predicts = f" and predicts {self.options.prediction_type}" if self.options.prediction_type else ""
        options, blocks = self.options, self.blocks
        changes = (
            f"strides {list(self.teacher_strides)} -> {list(self.student_strides)}: feature maps"
            f" {step}x smaller a side{in_all}"
        )
        if step == 1:
            reduced = f", a student's, {self.reduction}x smaller in all" if in_all else ""
            changes = f"strides {list(self.student_strides)} stay: feature maps as large as its teacher's{reduced}"
        if options.architecture is not None:
            given = "".join(f", {key} {value}" for key, value in (options.arguments or {}).items())
            patch = self.student_strides[0]
            changes = f"{options.architecture}{given}, of patches of {patch}x{patch} pixels"
        lines = [
            changes,
            *(str(edit) for edit in self.edits if isinstance(edit, Tokens)),
            *cheap_lines(self.cheap),
            *([f"channels {list(self.widen)} times the teacher's, level by level"] if self.widens else []),
            f"the student starts from {'its teacher' if options.start == 'teacher' else 'random weights'}{predicts}",
            f"{len(blocks)} RED block{'s' * (len(blocks) != 1)} ({options.red_placement}, {options.red_norm} norm,"
            f" {options.red_start} start)",
        ]
        width = max((len(block.name) for block in blocks), default=0)
        for block in blocks:
            lines.append(
                f"  {block.name:<{width}}  {block.resolution:>4} px {block.channels:>4} ch  <->  "
                f"{block.teacher_side} of {block.teacher_layer} ({block.teacher_channels} ch)"
            )
        return "\n".join(lines)


def _converted(plan: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan, of an older one those that it stood for; ``edits`` aside. Raises as ``from_dict``."""
    if "edits" in plan:
        return {name: value for name, value in plan.items() if name != "edits"}
    options = {field.name: plan.get(field.name) for field in fields(StudentConfig)}
    step = plan["reduction"] // plan["teacher_strides"][0]
    widen = plan.get("widen") if any(factor != 1 for factor in plan.get("widen") or ()) else None
    options |= {"reduction": step, "widen": widen, "head_start": plan.get("head_start", "teacher")}
    kept = {name: plan[name] for name in ("reduction", "sample_size")}
    return {"family": "unet2d", **kept, "options": options}


def plan_student(teacher_config: dict[str, Any], options: StudentConfig | None = None) -> StudentPlan:
    """Plan a student of the network with this config, a teacher's or a student's; options left open are the default
    recipe's.

    No weights and no arithmetic: shapes come from one pass over the meta device.

    Raises:
        UserError: the teacher cannot be reduced so, with the reason.
    """
    return plan_from_table(teacher_config, teacher_table(teacher_config), options)


def plan_from_table(
    teacher_config: dict[str, Any], table: list[Resampling], options: StudentConfig | None = None
) -> StudentPlan:
    """``plan_student`` with the teacher's table (``teacher_table``), for whoever makes several plans of one teacher."""
    name, family = family_of(teacher_config)
    given = {k: v for k, v in asdict(options or StudentConfig()).items() if v is not None}
    if "architecture" in given:
        return _plan_of_its_own(teacher_config, table, given)
    defaults = family.default_student()
    known = (*defaults, "reduction", "cheap", "cheap_norm", *(["widen"] if family.WIDENS else []))
    foreign = next((option for option in given if option not in known), None)
    if foreign:
        raise UserError(f"student.{foreign} is set, which no student of a {name} has: leave it out")
    chosen: dict[str, Any] = {**defaults, "reduction": REDUCTION, **given}
    step = chosen["reduction"]
    if step not in REDUCTIONS and not (step == 1 and "cheap" in chosen):
        raise UserError(f"reduction {step} is not supported: choose 2, 4 or 8")
    made_by = _plan_of(teacher_config)
    if made_by is not None and made_by.cheap:
        raise UserError(
            "this teacher is a student of cheap convolutions, from which no layers are taken: give the teacher that it"
            " was made from"
        )
    if step == 1:
        chosen |= kept_red(made_by.options if made_by else None, given)
    teacher_strides = strides_of(table)
    widen = tuple(chosen.get("widen", [1] * len(teacher_strides)))
    if len(widen) != len(teacher_strides) or not all(isinstance(f, int) and 1 <= f <= LARGEST_FACTOR for f in widen):
        raise UserError(
            f"student.widen is {list(widen)}: give {len(teacher_strides)} whole numbers from 1 to {LARGEST_FACTOR},"
            f" one for each level of this teacher, as {[*[1] * (len(teacher_strides) - 1), 2]}"
        )
    chosen["widen"] = list(widen) if max(widen) > 1 else None
    own = own_table(teacher_config, table, widen)
    had = table[0].stride // own[0].stride
    _check_reduction(step, had, sum(row.stride > 1 for row in table if row.kind in DOWN))
    strides = without_stride(table, step)
    cheap: list[Cheap] = []
    if "cheap" in chosen:
        config = family.base_config(teacher_config)
        layers = family.cheap_layers(family.widened(config, widen) if max(widen) > 1 else config)
        chosen["cheap_norm"] = chosen.get("cheap_norm", family.CHEAP_NORM)
        cheap = cheap_edits(layers, chosen["cheap"], chosen["cheap_norm"])
    elif "cheap_norm" in chosen:
        raise UserError("student.cheap_norm is set, and no convolution is cheap: leave it out, or set student.cheap")
    red = {key: chosen[f"red_{key}"] for key in ("placement", "norm", "start")}
    if step > 1:
        blocks = red_edits(own, table, strides, **red)
    else:
        blocks = kept_red_edits(list(made_by.blocks) if made_by else [], table)
    return StudentPlan(
        family=name,
        reduction=had * step,
        sample_size=table[0].resolution[0],
        teacher_strides=teacher_strides,
        student_strides=strides,
        options=StudentConfig(**chosen),
        edits=(*stride_edits(own, strides, had * step, widen), *cheap, *blocks),
    )


def _plan_of_its_own(teacher_config: dict[str, Any], table: list[Resampling], given: dict[str, Any]) -> StudentPlan:
    """Of a student that is not made of its teacher's layers.

    Args:
        given: of the options those that are not left open.
    """
    architecture, task = given["architecture"], family_of(teacher_config)[1].TASK
    name, family = find_family(architecture)
    if task != family.TASK:
        raise UserError(
            f"student.architecture {architecture} cannot learn what this teacher does, to {task}: leave it out"
        )
    defaults = family.default_student()
    known = (*defaults, "architecture", "arguments", "align_after")
    step = given.pop("reduction", REDUCTION)
    foreign = next((option for option in given if option not in known), None)
    if step != REDUCTION or foreign:
        foreign = foreign or "reduction"
        raise UserError(f"student.{foreign} is set, which no student of its own architecture has: leave it out")
    chosen: dict[str, Any] = {**defaults, **given, "reduction": step}
    config, maps = family.own_student(architecture, chosen.get("arguments", {}), teacher_config)
    if chosen["start"] == "teacher":
        raise UserError("student.start is teacher, and a student of its own architecture has no layers of its teacher")
    after = chosen.get("align_after", (len(maps) + 1) // 2)
    if not 1 <= after <= len(maps):
        raise UserError(f"student.align_after is {after}: the student has blocks 1 to {len(maps)}")
    red = {key: chosen[f"red_{key}"] for key in ("placement", "norm", "start")}
    side = family.size_of(config)
    assert isinstance(side, int)
    return StudentPlan(
        family=name,
        reduction=1,
        sample_size=side,
        teacher_strides=strides_of(table),
        student_strides=(side // maps[0].resolution,),
        options=StudentConfig(**chosen),
        edits=tuple(token_edits(maps[after - 1], table, **red)),
    )


def _plan_of(config: dict[str, Any]) -> StudentPlan | None:
    """Of a network that is a student. Raises UserError where its plan is none."""
    if not family_of(config)[1].is_student(config):
        return None
    return StudentPlan.from_dict(config.get("student_plan") or {})


def teacher_table(teacher_config: dict[str, Any]) -> list[Resampling]:
    """``resampling_table`` of a network that can be a teacher. Raises UserError as that, and of a widened student."""
    made_by = _plan_of(teacher_config)
    if made_by is not None and made_by.widens:
        raise UserError("this teacher is a student that is widened: give the teacher that it was made from")
    return family_of(teacher_config)[1].resampling_table(teacher_config)


def own_table(teacher_config: dict[str, Any], table: list[Resampling], widen: tuple[int, ...]) -> list[Resampling]:
    """The paths and channels of a student's own layers, before all edits but its widths.

    Args:
        table: the teacher's.
    """
    family = family_of(teacher_config)[1]
    config = family.base_config(teacher_config)
    if config is teacher_config and max(widen) == 1:
        return table
    return family.resampling_table(family.widened(config, widen) if max(widen) > 1 else config)


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
