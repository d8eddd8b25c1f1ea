"""teacher + plan -> student: a new network, the teacher untouched."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional as F

from ..errors import UserError
from ..pipelines.modeling_red_unet import RedUNet2DModel
from ..pipelines.pipeline_red_ddpm import seeded_generator
from .plan import StudentPlan, plan_student, resampling_table, widened
from .widen import widened_state


def derive_student(teacher: UNet2DModel, plan: StudentPlan, *, seed: int = 0) -> RedUNet2DModel:
    """The planned student of a teacher, in eval mode; random values (a random start, RED blocks) come from ``seed``.

    With ``plan.start == "teacher"`` every layer that both networks have starts from the teacher's weights, and
    stem and head from a mapping of them (``warm_start``); a widened student from the unwidened one (``widen.py``).

    Raises:
        UserError: the plan is not of this teacher, or its attention heads cannot be widened so.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seeded_generator(seed, "student").initial_seed())
        student = build_student(dict(teacher.config), plan)
    _check_channels(teacher, plan)
    if plan.start == "teacher" and plan.widens:
        config = {**teacher.config, "sample_size": plan.sample_size}
        narrow = derive_student(teacher, plan_student(config, replace(plan.options, widen=None)), seed=seed)
        generator = seeded_generator(seed, "widening")
        student.load_state_dict(widened_state(narrow, student, plan.widen, generator))
    elif plan.start == "teacher":
        student.load_state_dict(warm_start(teacher.state_dict(), student.state_dict(), plan.reduction))
        if plan.head_start == "zero":
            for parameter in student.conv_out.parameters():
                nn.init.zeros_(parameter)
    return student.eval()


def build_student(teacher_config: dict[str, Any], plan: StudentPlan) -> RedUNet2DModel:
    """The student's architecture from its teacher's config, freshly initialised (on the current default device)."""
    config = {key: value for key, value in teacher_config.items() if not key.startswith("_")}
    try:
        return RedUNet2DModel(**{**config, "sample_size": plan.sample_size, "student_plan": plan.to_dict()})
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the plan does not fit this teacher: {error}") from error


def _check_channels(teacher: UNet2DModel, plan: StudentPlan) -> None:
    """Raises UserError when a RED block has not the channels of the layer that it stands around, or is matched to."""
    config = {**teacher.config, "sample_size": plan.sample_size}
    theirs = _channels(config)
    own = _channels(widened(config, plan.widen)) if plan.widens else theirs
    for block in plan.blocks:
        path, side = block.name.rsplit(".", 1)
        for channels, layer, end, planned in (
            (own, path, int(side == "red_out"), block.channels),
            (theirs, block.teacher_layer, int(block.teacher_side == "output"), block.teacher_channels),
        ):
            if channels.get((layer, end)) != planned:
                raise UserError(
                    f"the plan does not fit this teacher: {block.name} is planned for {planned} channels at {layer},"
                    f" which has {channels.get((layer, end))}"
                )


def _channels(config: dict[str, Any]) -> dict[tuple[str, int], int]:
    """Channels at the input (0) and output (1) of each resampling layer."""
    return {(row.path, end): row.channels[end] for row in resampling_table(config) for end in (0, 1)}


def student_on_meta(teacher_config: dict[str, Any], plan: StudentPlan) -> RedUNet2DModel:
    """``build_student`` without memory for its weights, in eval mode. Raises UserError as that."""
    with torch.device("meta"):
        return build_student(teacher_config, plan).eval()


def warm_start(
    teacher: dict[str, torch.Tensor], student: dict[str, torch.Tensor], reduction: int
) -> dict[str, torch.Tensor]:
    """The student's state dict with all that the teacher can give. RED blocks keep their own start.

    Stem: the teacher's 3x3 kernel smoothed by a box of side r - 1 (itself at r = 2), so that a strided position
    averages what the teacher's stem says around it. Head: the teacher's kernel for each of the r*r pixels that
    a position is laid out to.

    Raises:
        UserError: a layer of the student that should have a counterpart has none.
    """
    state = dict(student)
    for name, value in student.items():
        if ".red_in." in name or ".red_out." in name:
            continue
        source = teacher_name(name)
        if source not in teacher:
            raise UserError(f"student layer {name} has no teacher layer {source} to start from")
        given = teacher[source]
        if source == "conv_in.weight":
            given = widen_stem(given, reduction)
        elif source.startswith("conv_out."):
            # PixelShuffle reads channel c * r * r + (row * r + column)
            given = given.repeat_interleave(reduction**2, dim=0)
        if given.shape != value.shape:
            raise UserError(f"student layer {name} is {tuple(value.shape)}, teacher's {source} {tuple(given.shape)}")
        state[name] = given.clone()
    return state


def widen_stem(kernel: torch.Tensor, reduction: int) -> torch.Tensor:
    """(C, C_in, 3, 3) -> (C, C_in, r + 1, r + 1), the kernel convolved with a box of side r - 1 and sum 1."""
    side = reduction - 1
    box = torch.full((1, 1, side, side), 1 / side**2, dtype=kernel.dtype, device=kernel.device)
    widened = F.conv2d(kernel.flatten(0, 1).unsqueeze(1), box, padding=side - 1)
    return widened.view(*kernel.shape[:2], *widened.shape[-2:])


def teacher_name(student_name: str) -> str:
    """The teacher's name of a student's tensor: without the wrappers that RED blocks and the head add."""
    name = student_name.replace(".layer.", ".")
    return name.replace("conv_out.0.", "conv_out.")
