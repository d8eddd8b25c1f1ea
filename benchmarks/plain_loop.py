"""The paper's training loop as its description reads, with nothing done for speed: what ``throughput.py`` is against.

Chen et al., "ReDistill", arXiv 2406.03744: a student trained on noise prediction and the alignment of its RED blocks'
maps with its teacher's. One step: a full forward of the teacher in float32 and training mode, with a hook at every
aligned layer; the student's forward, its hooks; backward; clipping; Adam as one calls it; an average in a Python loop
over the state dict. The numbers of a step come from our ``Draws``, so that its losses can be compared with ours.
"""

from collections.abc import Iterator
from itertools import count

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ddpm_redistill import StudentPlan
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.training.draws import Draws

ALPHA = 50.0  # of the alignment loss
EMA_DECAY = 0.9999


class PlainLoop:
    """``step()`` takes the next batch through one optimizer step and returns its loss."""

    def __init__(
        self, teacher: UNet2DModel, scheduler: DDPMScheduler, plan: StudentPlan, draws: Draws, learning_rate: float
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student = derive_student(teacher, plan, seed=0).to(self.device).train()
        self.teacher = teacher.to(self.device).train()
        self.scheduler = scheduler
        size = draws.batch_size
        batches = (list(range(step * size, (step + 1) * size)) for step in count())
        self.batches: Iterator[dict[str, torch.Tensor]] = iter(DataLoader(draws, batch_sampler=batches))
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=learning_rate)
        self.ema = {name: value.clone() for name, value in self.student.state_dict().items()}
        self.student_maps: dict[str, torch.Tensor] = {}
        self.teacher_maps: dict[str, torch.Tensor] = {}
        for block in plan.blocks:
            layer = self.student.get_submodule(block.name)
            layer.register_forward_hook(self.keep(self.student_maps, block.name, "output"))
            layer = self.teacher.get_submodule(block.teacher_layer)
            layer.register_forward_hook(self.keep(self.teacher_maps, block.name, block.teacher_side))

    @staticmethod
    def keep(maps: dict[str, torch.Tensor], name: str, side: str):
        def hook(module, args, output):
            maps[name] = output if side == "output" else args[0]

        return hook

    def step(self) -> float:
        batch = {key: value.to(self.device) for key, value in next(self.batches).items()}
        noise, timesteps = batch["noise"], batch["timesteps"]
        noisy = self.scheduler.add_noise(batch["images"], noise, timesteps)
        with torch.no_grad():
            self.teacher(noisy, timesteps)
        prediction = self.student(noisy, timesteps).sample
        distances = [
            F.mse_loss(self.student_maps[name].mean(1), self.teacher_maps[name].mean(1)) for name in self.student_maps
        ]
        loss = F.mse_loss(prediction, noise) + ALPHA * sum(distances) / len(distances)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, value in self.student.state_dict().items():
                if value.is_floating_point():
                    self.ema[name].mul_(EMA_DECAY).add_(value, alpha=1 - EMA_DECAY)
                else:
                    self.ema[name].copy_(value)
        return loss.item()
