"""One optimizer step, and what lives from one to the next: the trained vector, its gradient, the optimizer's
state, the average. The loop runs it on images, ``step_memory.py`` on tensors without data."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..config import TrainingConfig
from ..core.ema import EMA
from ..core.flat import FlatParameters
from .batch_norm import share_batch_norms
from .gradient import Batch, GradientStep, Objective, place
from .states import named_parameters

MOMENTUM = 0.9
"""Of SGD, with Nesterov's look ahead (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html)."""


class OptimizerStep:
    """Trains ``network``, and ``loss_modules`` with it, in place."""

    def __init__(
        self,
        network: nn.Module,
        loss_modules: nn.Module | None,
        weights: dict[str, float],
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        """Moves them to the accelerator's device, in training mode; arguments as ``loop.train``."""
        modules = [network] if loss_modules is None else [network, loss_modules]
        for module in modules:
            place(module.train(), config, accelerator.device)
        if config.gradient_checkpointing:
            # Of diffusers' residual blocks: RED blocks and taps are outside of these, so that BatchNorm counts a batch
            # once and a map is read once.
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        if accelerator.num_processes > 1:
            share_batch_norms(network)
        self.network, self.config, self.accelerator = network, config, accelerator
        self.flat = FlatParameters(named_parameters(network, loss_modules))
        # Not with a scaler: Accelerate cannot tell that a fused optimizer skipped a step, and would average it in.
        fused = accelerator.scaler is None and accelerator.device.type in ("cpu", "cuda")
        common: dict[str, Any] = {
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
            "fused": fused or None,
            "foreach": True if accelerator.scaler else None,  # what torch takes on CUDA of itself
        }
        # Weight decay is of the whole vector, biases and BatchNorm too, as in the training of ResNets (He et al. 2016).
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD([self.flat.vector], momentum=MOMENTUM, nesterov=True, **common)
        else:
            self.optimizer = torch.optim.Adam([self.flat.vector], decoupled_weight_decay=True, **common)
        self.prepared_optimizer = accelerator.prepare(self.optimizer)
        self.ema = EMA(network, self.flat, config.ema_decay)
        self.gradient_step = GradientStep(modules, weights, self.flat, config, accelerator)

    def __call__(
        self, objective: Objective, batches: Iterator[Batch], learning_rate: float
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Take the next micro-batches -> the means of the loss parts in this process, and the gradient's norm before
        clipping; each a scalar."""
        for group in self.prepared_optimizer.param_groups:
            group["lr"] = learning_rate
        logged = dict[str, torch.Tensor]()
        for _ in range(self.config.gradient_accumulation):
            for name, value in self.gradient_step(objective, next(batches)).items():
                logged[name] = logged[name] + value if name in logged else value.clone()
        if self.accelerator.num_processes > 1:  # all gradients are one vector: reduced at once, and once a step
            self.flat.gradient.copy_(self.accelerator.reduce(self.flat.gradient, "mean"))
        self.accelerator.unscale_gradients()
        norm = self.flat.clip_gradient(self.config.clip_norm or math.inf)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad(set_to_none=False)
        if not self.prepared_optimizer.step_was_skipped:
            self.ema.update(self.network)
        return logged, norm

    def finish(self) -> None:
        """Leave the network with its average, memory of its own and no trace of the training."""
        self.ema.copy_to(self.network)
        self.flat.release()
        if self.config.gradient_checkpointing:
            self.network.disable_gradient_checkpointing()  # type: ignore[operator]
        self.network.eval()
