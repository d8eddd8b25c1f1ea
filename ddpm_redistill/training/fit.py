"""Micro-batches as large as fit into a memory budget; the global batch stays."""

import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from accelerate import Accelerator

from ..config import FREE, TrainingConfig
from ..errors import UserError
from ..units import MIB, parse_bytes
from .step_memory import StepMemory

log = logging.getLogger("ddpm_redistill")

SHARE = 0.8
"""Of a GPU's free memory. The rest is for convolutions' workspaces and the allocator's rounding."""

MemoryOf = Callable[[TrainingConfig], StepMemory]


def fitted(training: TrainingConfig, memory_of: MemoryOf, accelerator: Accelerator) -> TrainingConfig:
    """``training`` with the least ``gradient_accumulation`` whose step, by ``memory_of``, fits into ``memory_budget``,
    and without that.

    Raises:
        UserError: not even one image at a time fits, or ``free`` is asked for on a CPU.
    """
    budget = budget_of(training, accelerator)
    images = training.global_batch // accelerator.num_processes  # of each; make_accelerator has checked that it divides
    sizes = [size for size in range(1, images + 1) if images % size == 0]

    @cache
    def peak(size: int, checkpointing: bool = training.gradient_checkpointing) -> int:
        parts = {"memory_budget": None, "gradient_accumulation": images // size}
        return memory_of(replace(training, **parts, gradient_checkpointing=checkpointing)).peak  # type: ignore[arg-type]

    if peak(1) > budget:  # looked at first, since each peak takes seconds
        least, hint = peak(1), ""
        told = f"{budget / MIB:,.1f} MiB" if training.memory_budget == FREE else training.memory_budget
        if not training.gradient_checkpointing:
            saving = peak(1, True)
            verb = "fits" if saving <= budget else "does not fit either"
            hint = f"; with training.gradient_checkpointing true it takes {saving / MIB:,.1f} MiB, which {verb}"
        raise UserError(
            f"training.memory_budget is {told}, and a step with one image at a time takes"
            f" {least / MIB:,.1f} MiB of tensors{hint}"
        )
    size = sizes[bisect_right(sizes, budget, key=peak) - 1]
    log.info(
        "training.batch_size %d in %d micro-batches of %d images a process: about %.1f MiB of tensors, of %.1f MiB",
        *(training.global_batch, images // size, size, peak(size) / MIB, budget / MIB),
    )
    return replace(training, memory_budget=None, gradient_accumulation=images // size)


def budget_of(training: TrainingConfig, accelerator: Accelerator) -> int:
    """Bytes for each process, the same in all of them. Raises UserError for ``free`` on a CPU."""
    assert training.memory_budget is not None
    if training.memory_budget != FREE:
        return parse_bytes(training.memory_budget)
    if accelerator.device.type != "cuda":
        raise UserError("training.batch_size auto needs training.memory_budget on a CPU, as 16GiB: what may be used")
    free = torch.tensor([torch.cuda.mem_get_info(accelerator.device)[0]], device=accelerator.device)
    return int(SHARE * int(accelerator.gather(free).min()))
