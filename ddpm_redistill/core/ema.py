"""Exponential moving average of a network: parameters and floating-point buffers (BatchNorm statistics) alike."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .flat import FlatParameters


class EMA:
    """``shadow <- decay_t * shadow + (1 - decay_t) * value`` after every optimizer step.

    decay_t = min(decay, (1 + t) / (10 + t)), t the number of updates so far, so that a short run is not held
    at its random start. Integer buffers are copied. diffusers' own EMA tracks parameters only, which would
    pair averaged weights with other weights' BatchNorm statistics.
    """

    def __init__(self, network: nn.Module, flat: FlatParameters, decay: float):
        """``flat`` has all parameters of ``network`` under their names there, and may have others."""
        self.decay = decay
        self.updates = 0
        self.flat = flat
        self.average = flat.vector.detach().clone()
        pieces = flat.views(self.average)
        # In the order of the state dict: parameters as views of the average, buffers as copies.
        self.shadow = {
            name: pieces[name] if name in pieces else value.detach().clone()
            for name, value in network.state_dict().items()
        }
        self.buffers = [name for name in self.shadow if name not in pieces]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Average in the network's present state, in place."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        self.average.lerp_(self.flat.vector, 1 - decay)
        for name in self.buffers:
            value = network.get_buffer(name)
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Put the averaged state into ``network``. Raises RuntimeError when the names or shapes differ."""
        network.load_state_dict(self.shadow)

    @contextmanager
    def held_by(self, network: nn.Module) -> Iterator[None]:
        """Within the block ``network`` has the averaged state and is in evaluation mode; then its own again."""
        own = {name: value.clone() for name, value in network.state_dict().items()}
        training = network.training
        self.copy_to(network)
        network.eval()
        try:
            yield
        finally:
            network.load_state_dict(own)
            network.train(training)
