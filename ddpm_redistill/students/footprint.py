"""Memory of a network, existing or only planned, by every definition of ``core/memory.py``."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from ..core.memory import MemoryProfile, profile_memory
from ..core.peak import tensor_peak_within
from ..families.registry import family_of
from ..pipelines.lean import LEAN_SETTINGS, CannotRunLeanError, lean_execution
from .derive import student_on_meta
from .plan import StudentPlan

MOST_SAVING = "smallest"
"""Of ``LEAN_SETTINGS``: the one whose peak is ``tensor_peak_lean``."""


def network_of(config: dict[str, Any]) -> nn.Module:
    """The network of a ``config.json``, teacher or student, without memory for its weights. Raises UserError."""
    family = family_of(config)[1]
    if not family.is_student(config):
        return family.network_on_meta(config)
    return student_on_meta(config, StudentPlan.from_dict(config.get("student_plan") or {}))


def network_memory(
    network: nn.Module,
    *,
    batch_size: int = 1,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    lean: str | None = None,
) -> MemoryProfile:
    """Of one forward pass on fake tensors: bytes, nothing computed.

    Args:
        network: with weights or on the meta device; it is not changed.
        image_size: pixels a side; None is the network's own sample size.
        dtype: of weights and activations.
        lean: a setting of lean execution; None is eager execution.

    Raises:
        UserError: no images, a size that it cannot take, or an input past counting.
    """
    family = family_of(cast(Any, network).config)[1]
    network, inputs = family.with_input(network, batch_size, image_size, dtype)
    with lean_execution(network, lean) if lean else nullcontext():
        profile = profile_memory(network, *inputs)
    own: dict[str, Any] = family.paper_peaks(network, inputs)
    return replace(profile, **own)


def network_peak(
    network: nn.Module,
    *,
    batch_size: int = 1,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    lean: str | None = None,
    limit: float = float("inf"),
) -> tuple[int, bool]:
    """The tensor_peak of ``network_memory``, quicker, and True; or, of a pass that was stopped since more than
    ``limit`` bytes were alive, a lower bound and False.

    Arguments and errors are ``network_memory``'s; the network is in eval mode.
    """
    family = family_of(cast(Any, network).config)[1]
    network, inputs = family.with_input(network, batch_size, image_size, dtype)
    with lean_execution(network, lean) if lean else nullcontext():
        return tensor_peak_within(network, inputs, limit)


def memory_profiles(
    network: nn.Module, *, settings: Sequence[str] = LEAN_SETTINGS, **at: Any
) -> dict[str | None, MemoryProfile]:
    """``network_memory`` by execution: None (eager), then these lean settings, if the network can run lean.

    ``at`` and the errors are ``network_memory``'s. A lean pass has many more operations and takes seconds.
    """
    eager = network_memory(network, **at)
    try:
        return {None: eager, **{setting: network_memory(network, **at, lean=setting) for setting in settings}}
    except CannotRunLeanError:
        return {None: eager}


def profiles_report(profiles: dict[str | None, MemoryProfile]) -> dict[str, Any]:
    """The eager profile ready for JSON, with the exact peak of lean execution beside it; bytes.

    Added to the profile: ``lean``, tensor_peak by setting as measured, and ``tensor_peak_lean``, that of the most
    saving one; neither for a network that cannot run lean, as a classifier.
    """
    lean = {setting: profile.tensor_peak for setting, profile in profiles.items() if setting is not None}
    return {**profiles[None].to_dict(), **_lean_report(lean)}


def memory_report(network: nn.Module, *, settings: Sequence[str] = (MOST_SAVING,), **at: Any) -> dict[str, Any]:
    """``profiles_report(memory_profiles(...))`` of a network in eval mode, quicker: of lean execution only the peaks
    are measured."""
    report = profiles_report({None: network_memory(network, **at)})
    try:
        lean = {setting: network_peak(network, **at, lean=setting)[0] for setting in settings}
    except CannotRunLeanError:
        return report
    return {**report, **_lean_report(lean)}


def _lean_report(lean: dict[str, int]) -> dict[str, Any]:
    return {"tensor_peak_lean": lean.get(MOST_SAVING), "lean": lean} if lean else {}


def planned_report(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, dict[str, Any]]:
    """``memory_report`` of both networks of a plan: ``{"teacher": ..., "student": ...}``."""
    return {name: memory_report(network) for name, network in _planned(teacher_config, plan).items()}


def planned_memory(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, MemoryProfile]:
    """``{"teacher": ..., "student": ...}`` of a plan, before either network has weights."""
    return {name: network_memory(network) for name, network in _planned(teacher_config, plan).items()}


def _planned(teacher_config: dict[str, Any], plan: StudentPlan) -> dict[str, nn.Module]:
    family = family_of(teacher_config)[1]
    config = family.sized(teacher_config, plan.sample_size)
    return {"teacher": family.network_on_meta(config), "student": student_on_meta(config, plan)}
