"""Memory of a UNet, existing or only planned, by every definition of ``core/memory.py``."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from ..core.memory import MemoryProfile, profile_memory
from ..core.peak import tensor_peak_within
from ..errors import UserError
from ..pipelines.lean import LEAN_SETTINGS, CannotRunLeanError, lean_execution
from .derive import student_on_meta
from .network import build_on_meta, is_student
from .plan import StudentPlan

MOST_SAVING = "smallest"
"""Of ``LEAN_SETTINGS``: the one whose peak is ``tensor_peak_lean``."""
LARGEST_INPUT = 2**50
"""Bytes; torch counts in 63 bits, and a feature map is many times the input."""


def network_of(config: dict[str, Any]) -> UNet2DModel:
    """The network of a ``config.json``, teacher or student, without memory for its weights. Raises UserError."""
    if not is_student(config):
        return build_on_meta(config)
    return student_on_meta(config, StudentPlan.from_dict(config.get("student_plan") or {}))


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

    Raises:
        UserError: no images, a size that the down-samplers do not divide, or an input past counting.
    """
    unet, sample = _network_and_input(unet, batch_size, image_size, dtype)
    with lean_execution(unet, lean) if lean else nullcontext():
        return profile_memory(unet, sample, 0, labels_on_meta(unet, batch_size))


def unet_peak(
    unet: UNet2DModel,
    *,
    batch_size: int = 1,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    lean: str | None = None,
    limit: float = float("inf"),
) -> tuple[int, bool]:
    """The tensor_peak of ``unet_memory``, quicker, and True; or, of a pass that was stopped since more than ``limit``
    bytes were alive, a lower bound and False.

    Arguments and errors are ``unet_memory``'s; the network is in eval mode.
    """
    unet, sample = _network_and_input(unet, batch_size, image_size, dtype)
    with lean_execution(unet, lean) if lean else nullcontext():
        return tensor_peak_within(unet, sample, 0, limit, labels_on_meta(unet, batch_size))


def labels_on_meta(unet: UNet2DModel, batch_size: int) -> torch.Tensor | None:
    """What a network with classes is given beside sample and timestep, (B,) without data; None without classes."""
    return None if unet.class_embedding is None else torch.zeros(batch_size, dtype=torch.long, device="meta")


def memory_profiles(
    unet: UNet2DModel, *, settings: Sequence[str] = LEAN_SETTINGS, **at: Any
) -> dict[str | None, MemoryProfile]:
    """``unet_memory`` by execution: None (eager), then these lean settings, if the network can run lean.

    ``at`` and the errors are ``unet_memory``'s. A lean pass has many more operations and takes seconds.
    """
    eager = unet_memory(unet, **at)
    try:
        return {None: eager, **{setting: unet_memory(unet, **at, lean=setting) for setting in settings}}
    except CannotRunLeanError:
        return {None: eager}


def profiles_report(profiles: dict[str | None, MemoryProfile]) -> dict[str, Any]:
    """The eager profile ready for JSON, with the exact peak of lean execution beside it; bytes.

    Added to the profile: ``lean``, tensor_peak by setting as measured, and ``tensor_peak_lean``, that of the most
    saving one; empty and None for a network that cannot run lean.
    """
    lean = {setting: profile.tensor_peak for setting, profile in profiles.items() if setting is not None}
    return {**profiles[None].to_dict(), "tensor_peak_lean": lean.get(MOST_SAVING), "lean": lean}


def memory_report(unet: UNet2DModel, *, settings: Sequence[str] = (MOST_SAVING,), **at: Any) -> dict[str, Any]:
    """``profiles_report(memory_profiles(...))`` of a network in eval mode, quicker: of lean execution only the peaks
    are measured."""
    report = profiles_report({None: unet_memory(unet, **at)})
    try:
        lean = {setting: unet_peak(unet, **at, lean=setting)[0] for setting in settings}
    except CannotRunLeanError:
        return report
    return {**report, "tensor_peak_lean": lean.get(MOST_SAVING), "lean": lean}


def planned_report(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, dict[str, Any]]:
    """``memory_report`` of both networks of a plan: ``{"teacher": ..., "student": ...}``."""
    return {name: memory_report(unet) for name, unet in _planned(teacher_config, plan).items()}


def planned_memory(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, MemoryProfile]:
    """``{"teacher": ..., "student": ...}`` of a plan, before either network has weights."""
    return {name: unet_memory(unet) for name, unet in _planned(teacher_config, plan).items()}


def _planned(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, UNet2DModel]:
    config = {**teacher_config, "sample_size": plan.sample_size}
    return {"teacher": build_on_meta(config), "student": student_on_meta(config, plan)}


def _network_and_input(
    unet: UNet2DModel, batch_size: int, image_size: int | None, dtype: torch.dtype
) -> tuple[UNet2DModel, torch.Tensor]:
    """The network in this dtype, and a sample (B, C, H, W) on the meta device. Raises UserError as ``unet_memory``."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    size = unet.config.sample_size if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    _check_size(unet, height, width)
    if batch_size * unet.config.in_channels * height * width * dtype.itemsize > LARGEST_INPUT:
        raise UserError(f"{batch_size} images of {height} pixels a side are more than 2**50 bytes: too large to count")
    sample = torch.empty(batch_size, unet.config.in_channels, height, width, device="meta", dtype=dtype)
    if unet.dtype != dtype:
        with torch.device("meta"):
            unet = type(unet).from_config(unet.config).eval()
        nn.Module.to(unet, dtype)  # diffusers' own `to` warns of layers to keep in float32, and has none to name
    return unet, sample


def _check_size(unet: UNet2DModel, height: int, width: int) -> None:
    """A student has moved strides to its stem and head: as many down-samplers, and as much to divide by.

    A size that does not divide can go through a student all the same, and give an image of another size.
    """
    if min(height, width) < 1:
        raise UserError(f"image_size must be at least 1, not {min(height, width)}")
    downs = sum(bool(block.downsamplers) for block in unet.down_blocks)
    for size in (height, width):
        if size % 2**downs:
            raise UserError(
                f"image size {size} does not divide by {2**downs}, as the network's {downs} down-samplers need"
            )
