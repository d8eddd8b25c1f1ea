"""Between a run that is at work and its checkpoints: what is captured after a step, and restored before the next."""

import logging
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from ..core.ema import EMA
from ..core.flat import FlatParameters
from ..errors import UserError
from .checkpoint import Checkpoint, load_checkpoint, newest_intact
from .disk import on_main
from .run_folder import RunFolder
from .states import joined_state, load_joined_state, optimizer_state, restore_optimizer_state

log = logging.getLogger("ddpm_redistill")


@dataclass(frozen=True)
class Trained:
    """All that training changes. Sample order, noise, timesteps and learning rate are functions of the step."""

    network: nn.Module
    loss_modules: nn.Module | None
    flat: FlatParameters  # of both
    ema: EMA
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator

    @property
    def _device(self) -> str:
        return self.accelerator.device.type

    def captured(self, step: int) -> Checkpoint:
        """After ``step`` steps; its tensors are the run's own."""
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}
        state = {"step": step, "ema_updates": self.ema.updates, "scaler": scaler, "device": self._device}
        kept = optimizer_state(self.optimizer, self.flat)
        return Checkpoint(joined_state(self.network, self.loss_modules), self.ema.shadow, kept, state)

    def restore(self, run: RunFolder) -> int:
        """Load the newest checkpoint that is intact -> its step, 0 if there is none yet.

        The main process looks for it, and its answer holds for all.

        Raises:
            UserError: none is intact, or it is of another network.
        """
        path = on_main(self.accelerator, lambda: newest_intact(run.checkpoints))
        if path is None:
            log.info("no checkpoint in %s yet: starting from the beginning", run.checkpoints)
            step = 0
        else:
            checkpoint = load_checkpoint(path)
            step = checkpoint.state["step"]
            try:
                load_joined_state(self.network, self.loss_modules, checkpoint.model)
                for name, value in self.ema.shadow.items():
                    value.copy_(checkpoint.ema[name])
                restore_optimizer_state(self.optimizer, self.flat, checkpoint.optimizer)
            except (RuntimeError, KeyError) as error:
                line = str(error).splitlines()[0]
                raise UserError(f"checkpoint {path} is not of this network: {line}") from error
            self.ema.updates = checkpoint.state["ema_updates"]
            if checkpoint.state["scaler"] and self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
            log.info("resuming from %s", path)
            before = checkpoint.state.get("device", self._device)
            if before != self._device:
                log.warning(
                    "the run drew its noise on %s until step %d and draws on %s now: other numbers, so that it ends"
                    " elsewhere than on one of them alone", before, step, self._device,
                )  # fmt: skip
        on_main(self.accelerator, lambda: run.drop_metrics_after(step))
        return step
