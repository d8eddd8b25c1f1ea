"""How far a planned student can be widened without a byte more at its tensor peak."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ..families.registry import family_of
from .derive import student_on_meta
from .footprint import MOST_SAVING, network_peak
from .plan import StudentPlan, plan_from_table, teacher_table

FACTOR = 2


@dataclass(frozen=True, kw_only=True)
class FreeWidth:
    """What ``free_width`` found, at batch 1 in float32; ``widen`` is 1 everywhere where nothing is free.

    Args:
        parameters, weights: of the widened student; weights in bytes, buffers included.
        parameters_before, weights_before: of the planned one.
        lean: whether ``tensor_peak_lean`` stays within the planned student's too; None where nothing is free, or
            the network cannot run lean.
    """

    widen: tuple[int, ...]
    parameters: int
    parameters_before: int
    weights: int
    weights_before: int
    lean: bool | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "widen": list(self.widen)}


def free_width(
    teacher_config: dict[str, Any], plan: StudentPlan, tensor_peak: int, tensor_peak_lean: int | None
) -> FreeWidth:
    """The levels that can be twice as wide at once, from the deepest up to the first that costs something.

    Every step is an exact pass on fake tensors, stopped where it is past the peak. Skips tie a level to the finer one
    next to it, hence together and in this order. The finest level is left out: all of the peak's maps may be its own.

    Args:
        plan: of a student with the teacher's widths.
        tensor_peak, tensor_peak_lean: bytes, of the planned student (``memory_report``).
    """
    config = family_of(teacher_config)[1].sized(teacher_config, plan.sample_size)
    table, before = teacher_table(config), student_on_meta(config, plan)
    found, found_plan = before, plan
    for level in reversed(range(1, len(plan.widen))):
        widen = [FACTOR if i >= level else 1 for i in range(len(plan.widen))]
        wider = plan_from_table(config, table, replace(plan.options, widen=widen))
        unet = student_on_meta(config, wider)
        if not network_peak(unet, limit=tensor_peak)[1]:
            break
        found, found_plan = unet, wider
    lean = None
    if found_plan.widens and tensor_peak_lean is not None:
        _, lean = network_peak(found, lean=MOST_SAVING, limit=tensor_peak_lean)
    return FreeWidth(
        widen=found_plan.widen,
        parameters=_parameters(found),
        parameters_before=_parameters(before),
        weights=_weights(found),
        weights_before=_weights(before),
        lean=lean,
    )


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _weights(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())
