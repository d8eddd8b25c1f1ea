"""Exponential moving average of a network: parameters and floating-point buffers (BatchNorm statistics) alike."""

import torch
from torch import nn


class EMA:
    """``shadow <- decay_t * shadow + (1 - decay_t) * value`` after every optimizer step.

    decay_t = min(decay, (1 + t) / (10 + t)), t the number of updates so far, so that a short run is not held
    at its random start. Integer buffers are copied. diffusers' own EMA tracks parameters only, which would
    pair averaged weights with other weights' BatchNorm statistics.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Average in the network's present state. In place, one fused operation for all floating-point tensors."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        state = network.state_dict()
        floating = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in floating], [state[n] for n in floating], 1 - decay)
        for name in state.keys() - floating:
            self.shadow[name].copy_(state[name])

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Put the averaged state into ``network``. Raises RuntimeError when the names or shapes differ."""
        network.load_state_dict(self.shadow)
