"""Memory of a UNet, existing or only planned, by every definition of ``core/memory.py``."""

from contextlib import nullcontext
from typing import Any

import torch
from diffusers import UNet2DModel

from ..core.memory import MemoryProfile, profile_memory
from ..pipelines.lean import lean_execution
from .derive import build_student
from .plan import StudentPlan, build_on_meta


def unet_memory(
    unet: UNet2DModel,
    *,
    batch_size: int = 1,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    lean: str | None = None,
) -> MemoryProfile:
    """Of one denoising step on fake tensors: bytes, nothing computed.

    Args:
        unet: the network, with weights or on the meta device; it is not changed.
        image_size: pixels a side; None is the network's own sample size.
        dtype: of weights and activations.
        lean: a setting of lean execution; None is eager execution.
    """
    size = image_size or unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    sample = torch.empty(batch_size, unet.config.in_channels, height, width, device="meta", dtype=dtype)
    if unet.dtype != dtype:
        with torch.device("meta"):
            unet = type(unet).from_config(unet.config).to(dtype)
    with lean_execution(unet, lean) if lean else nullcontext():
        return profile_memory(unet, sample, 0)


def planned_memory(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, MemoryProfile]:
    """``{"teacher": ..., "student": ...}`` of a plan, before either network has weights."""
    config = {**teacher_config, "sample_size": plan.sample_size}
    with torch.device("meta"):
        student = build_student(config, plan)
    return {"teacher": unet_memory(build_on_meta(config)), "student": unet_memory(student)}
