"""The first step whose loss is not finite, remembered on the device: no step waits for a number to reach the host."""

from pathlib import Path

import torch
from accelerate import Accelerator

from ..errors import UserError
from .checkpoint import last_good


class FiniteWatch:
    """Shown every step's loss parts; asked, now and then, whether all of them were finite."""

    def __init__(self, device: torch.device):
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # the first bad one, 0 while there is none
        self.values: torch.Tensor | None = None  # its parts
        self.names: tuple[str, ...] = ()

    def see(self, step: int, parts: dict[str, torch.Tensor]) -> None:
        """``step`` from 1; ``parts``: scalars by name, those of the first step or fewer. Waits for nothing."""
        if self.values is None:
            self.values, self.names = torch.zeros(len(parts), device=self.step.device), tuple(parts)
        absent = torch.zeros((), device=self.step.device)
        values = torch.stack([parts.get(name, absent).detach().float() for name in self.names])
        first = (self.step == 0) & ~values.isfinite().all()
        self.step = torch.where(first, step, self.step)
        self.values = torch.where(first, values, self.values)

    def check(self, accelerator: Accelerator, checkpoints: Path) -> None:
        """To be called by all processes together.

        Raises:
            UserError: in every process, naming the first step that was not finite in any of them, its parts there
                and the last good checkpoint.
        """
        assert self.values is not None, "nothing was seen yet"
        steps = accelerator.gather(self.step.view(1)).tolist()
        values = accelerator.gather(self.values.view(1, -1)).tolist()
        bad = min((pair for pair in zip(steps, values, strict=True) if pair[0]), key=lambda pair: pair[0], default=None)
        if bad is not None:
            parts = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.names, bad[1], strict=True))
            raise UserError(
                f"the loss is not finite at step {bad[0]} ({parts}); {last_good(checkpoints)}:"
                " lower training.learning_rate"
            )
