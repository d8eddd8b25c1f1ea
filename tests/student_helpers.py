"""What the tests of students share: images of a network's size, and whether RED blocks meet their teacher's maps."""

from dataclasses import asdict
from typing import Any

import torch
from diffusers import UNet2DModel

from ddpm_redistill import RedUNet2DModel, StudentConfig, StudentPlan
from ddpm_redistill.core.taps import Tap, reading
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.students.plan import plan_student


def image(config: dict[str, Any], device: str = "cpu", batch: int = 2) -> torch.Tensor:
    size = 256 if config["sample_size"] == 256 else 16
    return torch.randn(batch, config["in_channels"], size, size, device=device)


def equal_states(one: UNet2DModel, other: UNet2DModel) -> dict[str, bool]:
    others = other.state_dict()
    return {name: torch.equal(value, others[name]) for name, value in one.state_dict().items()}


def assert_blocks_meet(teacher: UNet2DModel, plan: StudentPlan, student: UNet2DModel, x: torch.Tensor) -> None:
    """Measured: each block's output is as large as the teacher's map, with the channels that the plan says."""
    mine = [Tap(block.name, "output") for block in plan.blocks]
    theirs = [Tap(block.teacher_layer, block.teacher_side) for block in plan.blocks]  # type: ignore[arg-type]
    timesteps = torch.full((len(x),), 10, device=x.device)
    with torch.no_grad(), reading(student, mine) as reader, reading(teacher, theirs) as other:
        output, own = reader.run(student, x, timesteps)
        wanted, matched = other.run(teacher, x, timesteps)
        assert output.sample.shape == wanted.sample.shape == x.shape
        for block, tap, teacher_tap in zip(plan.blocks, mine, theirs, strict=True):
            assert own[tap].shape[1:] == (block.channels, block.resolution, block.resolution)
            assert matched[teacher_tap].shape[1:] == (block.teacher_channels, block.resolution, block.resolution)
            assert block.resolution == block.resolution


def step(teacher: UNet2DModel, reduction: Any = 2, **student: Any) -> tuple[StudentPlan, RedUNet2DModel]:
    options: dict[str, Any] = {"red_placement": "full", "head_start": "teacher", **student}
    plan = plan_student(dict(teacher.config), StudentConfig(reduction=reduction, **options))
    return plan, derive_student(teacher, plan, seed=1)


def trained(unet: UNet2DModel) -> UNet2DModel:
    """As if it had been trained: no value is at its start, statistics included."""
    with torch.no_grad():
        for name, value in unet.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=torch.Generator().manual_seed(len(name)))
                value.add_(noise / 10)
    return unet


def half_of(tiny_config: dict[str, Any]) -> UNet2DModel:
    """A x2 student of the tiny teacher, of three channels, as if it had been trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = UNet2DModel(**{**tiny_config, "in_channels": 3, "out_channels": 3}).eval()
    return trained(step(teacher)[1])


def base_of(student: UNet2DModel) -> dict[str, Any]:
    """The config of the ``UNet2DModel`` that a student was made from."""
    config = {key: value for key, value in student.config.items() if key != "student_plan" and key[0] != "_"}
    for key in ("down_block_types", "up_block_types"):
        config[key] = tuple(name.removeprefix("RedUNet2DModel.") for name in config[key])
    return config


def old_plan(plan: StudentPlan) -> dict[str, Any]:
    """The plan as it was written before there were edits."""
    newer = ("reduction", "architecture", "arguments", "align_after", "cheap", "cheap_norm")
    options = {name: value for name, value in asdict(plan.options).items() if name not in newer}
    kept = ("channels", "resolution", "teacher_layer", "teacher_side", "teacher_channels")
    blocks = [
        {"name": block.name, "teacher_resolution": block.resolution, **{key: getattr(block, key) for key in kept}}
        for block in plan.blocks
    ]
    fields = {**plan.to_dict(), **options, "widen": list(plan.widen), "blocks": blocks}
    return {key: value for key, value in fields.items() if key not in ("family", "options", "edits")}
