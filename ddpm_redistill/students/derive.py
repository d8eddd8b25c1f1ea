"""teacher + plan -> student: a new network, the teacher untouched."""

import re
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..core.resampling import Resampling
from ..errors import UserError
from ..families.registry import family_named, family_of
from ..pipelines.edits import Head, Stem
from ..pipelines.seeds import seeded_generator
from .cheap_plan import FULL
from .cheap_start import cheap_start
from .plan import StudentPlan, own_table, plan_student, teacher_table
from .rule import strides_of

RED_BLOCK = re.compile(r".+\.red_(in|out)(?=\.)")
"""Of a tensor's name, the path of the RED block that it belongs to."""


def derive_student(teacher: nn.Module, plan: StudentPlan, *, seed: int = 0) -> nn.Module:
    """The planned student of a teacher, in eval mode; random values (a random start, RED blocks) come from ``seed``.

    With ``plan.options.start == "teacher"`` every layer that both networks have starts from the teacher's weights, and
    stem and head from a mapping of them (``warm_start``); a widened student from the unwidened one, and cheap
    convolutions from those of the same student with full ones (``cheap_start.py``).

    Raises:
        UserError: the plan is not of this teacher, or its attention heads cannot be widened so.
    """
    config = dict(cast(Any, teacher).config)
    with torch.random.fork_rng():
        torch.manual_seed(seeded_generator(seed, "student").initial_seed())
        student = build_student(config, plan)
    config = family_of(config)[1].sized(config, plan.sample_size)
    _check_layers(config, plan)
    if plan.options.start == "teacher" and plan.cheap:
        full = derive_student(teacher, plan_student(config, replace(plan.options, cheap=FULL)), seed=seed)
        cheap_start(full, student)
    elif plan.options.start == "teacher" and plan.widens:
        narrow = derive_student(teacher, plan_student(config, replace(plan.options, widen=None)), seed=seed)
        generator = seeded_generator(seed, "widening")
        widened = family_of(config)[1].widened_state(narrow, student, plan.widen, generator)
        student.load_state_dict(widened)
    elif plan.options.start == "teacher":
        student.load_state_dict(warm_start(teacher.state_dict(), student.state_dict(), plan))
        if plan.options.head_start == "zero":
            head = own_table(config, teacher_table(config), plan.widen)[-1].layers[0]
            for parameter in student.get_submodule(head).parameters():
                nn.init.zeros_(parameter)
    return student.eval()


def build_student(teacher_config: dict[str, Any], plan: StudentPlan) -> nn.Module:
    """The student's architecture from its teacher's config, freshly initialised (on the current default device).

    Raises:
        UserError: the plan does not fit this teacher.
    """
    return family_named(plan.family).build_student(teacher_config, plan.sample_size, plan.to_dict())


def student_on_meta(teacher_config: dict[str, Any], plan: StudentPlan) -> nn.Module:
    """``build_student`` without memory for its weights, in eval mode. Raises UserError as that."""
    with torch.device("meta"):
        return build_student(teacher_config, plan).eval()


def _check_layers(config: dict[str, Any], plan: StudentPlan) -> None:
    """Raises UserError when the teacher's strides are not the plan's, or a RED block has not the channels of the layer
    that it stands around, or is matched to."""
    table = teacher_table(config)
    strides = strides_of(table)
    if strides != plan.teacher_strides:
        raise UserError(
            f"the plan does not fit this teacher: it is of strides {list(plan.teacher_strides)}, not {list(strides)}"
        )
    if plan.options.architecture is not None:
        return  # its layers are its own, and it was built with them
    theirs, own = _channels(table), _channels(own_table(config, table, plan.widen))
    for block in plan.blocks:
        for channels, layer, end, planned in (
            (own, block.path, int(block.side == "red_out"), block.channels),
            (theirs, block.teacher_layer, int(block.teacher_side == "output"), block.teacher_channels),
        ):
            if channels.get((layer, end)) != planned:
                raise UserError(
                    f"the plan does not fit this teacher: {block.name} is planned for {planned} channels at {layer},"
                    f" which has {channels.get((layer, end))}"
                )


def _channels(table: list[Resampling]) -> dict[tuple[str, int], int]:
    """Channels at the input (0) and output (1) of each resampling layer."""
    return {(layer, end): row.channels[end] for row in table for end, layer in enumerate((row.reads, row.path))}


def warm_start(
    teacher: dict[str, torch.Tensor], student: dict[str, torch.Tensor], plan: StudentPlan
) -> dict[str, torch.Tensor]:
    """The student's state dict with all that the teacher can give.

    Stem: the teacher's kernel smoothed by a box (itself where the kernel has not grown), so that a strided position
    averages what the teacher's stem says around it. Head: the teacher's kernel for each of the pixels that a position
    is laid out to. A RED block starts from the teacher's of the same name where that is a student with the same kind of
    block there (the layers behind it were trained with it), and keeps its own start elsewhere.

    Raises:
        UserError: a layer of the student that should have a counterpart has none.
    """
    state, before = dict(student), plan.reduction // plan.step
    stems = {f"{edit.layers[0]}.weight" for edit in plan.edits if isinstance(edit, Stem)}
    heads = tuple(f"{edit.path}." for edit in plan.edits if isinstance(edit, Head))
    given_red = _red_blocks(teacher)
    same_red = {name for name, shapes in _red_blocks(student).items() if given_red.get(name) == shapes}
    given_layers = {plain_name(name, heads): value for name, value in teacher.items()}
    for name, value in student.items():
        if _red_block(name):
            state[name] = teacher[name].clone() if _red_block(name) in same_red else value
            continue
        source = plain_name(name, heads)
        if source not in given_layers:
            raise UserError(f"student layer {name} has no teacher layer {source} to start from")
        given = given_layers[source]
        if source in stems:
            given = widen_stem(given, value.shape[-1])
        elif source.startswith(heads):
            given = widen_head(given, before, plan.reduction // before)
        if given.shape != value.shape:
            raise UserError(f"student layer {name} is {tuple(value.shape)}, teacher's {source} {tuple(given.shape)}")
        state[name] = given.clone()
    return state


def widen_stem(kernel: torch.Tensor, side: int) -> torch.Tensor:
    """(C, C_in, k, k) -> (C, C_in, side, side), the kernel convolved with a box of side ``side - k + 1`` and sum 1."""
    width = side - kernel.shape[-1] + 1
    box = torch.full((1, 1, width, width), 1 / width**2, dtype=kernel.dtype, device=kernel.device)
    widened = F.conv2d(kernel.flatten(0, 1).unsqueeze(1), box, padding=width - 1)
    return widened.view(*kernel.shape[:2], *widened.shape[-2:])


def widen_head(values: torch.Tensor, before: int, step: int) -> torch.Tensor:
    """(C * b * b, ...) -> (C * r * r, ...) for r = b * step: a position stands for step * step of the teacher's, each
    of which is laid out to b * b pixels. PixelShuffle reads channel c * r * r + (row * r + column)."""
    pixels = values.unflatten(0, (-1, before, before))
    return pixels.repeat(1, step, step, *[1] * (values.ndim - 1)).flatten(0, 2)


def plain_name(name: str, heads: tuple[str, ...]) -> str:
    """A tensor's name in the network without the wrappers that RED blocks and the head add."""
    name = name.replace(".layer.", ".")
    for head in heads:
        name = name.replace(f"{head}0.", head)
    return name


def _red_block(name: str) -> str | None:
    """The RED block that a tensor is of, by its path; None for any other."""
    found = RED_BLOCK.match(name)
    return found[0] if found else None


def _red_blocks(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Size]]:
    """Of each RED block the shape of every tensor: with its names, what kind of block it is."""
    blocks: dict[str, dict[str, torch.Size]] = {}
    for name, value in state.items():
        block = _red_block(name)
        if block:
            blocks.setdefault(block, {})[name] = value.shape
    return blocks
