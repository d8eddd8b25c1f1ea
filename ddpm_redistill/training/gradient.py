"""The gradient of a micro-batch: eager, or as one compiled function for its forward and one for its backward."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..config import TrainingConfig
from ..core.flat import FlatParameters

log = logging.getLogger("ddpm_redistill")

Batch = dict[str, torch.Tensor]
Objective = Callable[..., dict[str, torch.Tensor]]
Parts = dict[str, torch.Tensor]


LONG_RUN = 5000
"""Steps from which on a run on CUDA saves more by fused kernels than the minutes that it takes to compile them."""
TRIALS = 3
"""Calls of a compiled function that may fail: CUDA graphs are recorded by the second."""


def how_to_compile(config: TrainingConfig, device: torch.device) -> str:
    """ "off", "cudagraphs", "default" or "reduce-overhead", of a run on ``device``: what "auto" is there."""
    if config.compile != "auto":
        return config.compile
    if device.type != "cuda":
        return "off"  # a CPU gains little (docs/speed.md)
    return "default" if config.steps >= LONG_RUN else "cudagraphs"


def place(module: nn.Module, config: TrainingConfig, device: torch.device) -> None:
    """Move a network to ``device``; for fused kernels on CUDA, with its weights laid out as tensor cores want them."""
    if any(t.device != device for t in (*module.parameters(), *module.buffers())):  # of tensors without data it fails
        module.to(device)
    if device.type == "cuda" and how_to_compile(config, device) in ("default", "reduce-overhead"):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class GradientStep:
    """Adds the gradient of an objective's weighted parts to the flat vector's."""

    def __init__(
        self,
        modules: list[nn.Module],
        weights: dict[str, float],
        flat: FlatParameters,
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        """``modules``: the network, then what is trained with it; what an objective is given after the batch.

        Raises no error where compilation fails: it says so in one line, and the run goes on eagerly.
        """
        self.modules, self.weights, self.flat, self.accelerator = modules, weights, flat, accelerator
        self.share = 1 / config.gradient_accumulation
        self.how = how_to_compile(config, accelerator.device)
        self.compiled: dict[Objective, Callable[..., Parts]] = {}
        self.calls: Counter[Objective] = Counter()
        if self.how != "off":
            torch.compiler.reset()  # else torch, counting what runs before this one compiled, would stop compiling

    def __call__(self, objective: Objective, batch: Batch) -> Parts:
        """-> its loss parts, and ``loss``, each a scalar without gradient, divided by the number of micro-batches."""
        if self.how != "off":
            parts = self._compiled(objective, batch)
        else:
            parts = self._loss(objective, batch)
            self.accelerator.backward(parts["loss"])
        return {name: value.detach() for name, value in parts.items()}

    def _loss(self, objective: Objective, batch: Batch) -> Parts:
        network, *others = self.modules
        with self.accelerator.autocast():
            parts = objective(network, batch, *others)
        parts = {name: value * self.share for name, value in parts.items()}
        terms = [self.weights[name] * parts[name] for name in self.weights if name in parts]
        return {"loss": torch.stack(terms).sum(), **parts}

    def _compiled(self, objective: Objective, batch: Batch) -> Parts:
        if objective not in self.compiled:
            self.compiled[objective] = self._compile(objective)
        self.calls[objective] += 1
        on_trial = self.calls[objective] <= TRIALS
        buffers = [buffer.clone() for buffer in self._buffers()] if on_trial else []
        try:
            torch.compiler.cudagraph_mark_step_begin()
            parts = self.compiled[objective](batch)
            scaler = self.accelerator.scaler
            loss = scaler.scale(parts["loss"]) if scaler else parts["loss"]
            # Not backward(): that would add each parameter's gradient by an operation of its own.
            gradients = torch.autograd.grad(loss, list(self.flat.parameters.values()), allow_unused=True)
        except Exception as error:
            if not on_trial or isinstance(error, torch.OutOfMemoryError):
                raise
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            log.warning("the training step cannot be compiled (%s): it goes on eagerly", line)
            self.how = "off"
            for buffer, before in zip(self._buffers(), buffers, strict=True):
                buffer.copy_(before)  # BatchNorm may have counted this batch
            torch.manual_seed(torch.initial_seed())  # and dropout has drawn for it
            return self(objective, batch)
        self.flat.add_gradients(gradients)
        return parts

    def _compile(self, objective: Objective) -> Callable[..., Parts]:
        if self.how == "cudagraphs":
            log.info("capturing the training step as CUDA graphs: some seconds")
            options: dict[str, Any] = {"backend": "cudagraphs"}
        else:
            log.info("compiling the training step: a minute or more; torch caches what it compiles")
            options = {"mode": self.how}
        return torch.compile(lambda batch: self._loss(objective, batch), dynamic=False, **options)

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for module in self.modules for buffer in module.buffers()]
