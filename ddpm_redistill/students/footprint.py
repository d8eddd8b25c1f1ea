"""Memory of a UNet, existing or only planned, by every definition of ``core/memory.py``."""

from typing import Any

import torch
from diffusers import UNet2DModel

from ..core.memory import MemoryProfile, profile_memory
from .derive import build_student
from .plan import StudentPlan, build_on_meta


def unet_memory(unet: UNet2DModel, *, batch_size: int = 1) -> MemoryProfile:
    """Of one denoising step at the network's own sample size, fp32, on fake tensors: bytes, nothing computed."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    sample = torch.empty(batch_size, unet.config.in_channels, height, width, device="meta")
    return profile_memory(unet, sample, 0)


def planned_memory(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, MemoryProfile]:
    """``{"teacher": ..., "student": ...}`` of a plan, before either network has weights."""
    config = {**teacher_config, "sample_size": plan.sample_size}
    with torch.device("meta"):
        student = build_student(config, plan)
    return {"teacher": unet_memory(build_on_meta(config)), "student": unet_memory(student)}
