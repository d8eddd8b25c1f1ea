"""The paper's training loop as its description reads, with nothing done for speed: what ``throughput.py`` is against.

Chen et al., "ReDistill", arXiv 2406.03744: a student trained on noise prediction and the alignment of its RED blocks'
maps with its teacher's. As in its authors' loop the frozen teacher is a part of the trained module. One step: a full
forward of the teacher in float32 and training mode, with a hook at every aligned layer; the student's forward, its
hooks; backward; clipping; Adam as one calls it; an average in a Python loop over the state dict, the teacher's entries
included; three scalars to TensorBoard. The numbers of a step come from our ``Draws``, so that its losses can be
compared with ours.
"""

import copy
import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from ddpm_redistill import StudentPlan
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.training.draws import Draws, micro_batches

ALPHA = 50.0  # of the alignment loss
EMA_DECAY = 0.9999


class PlainLoop:
    """``step()`` takes the next batch through one optimizer step and returns its loss."""

    def __init__(
        self,
        teacher: UNet2DModel,
        scheduler: DDPMScheduler,
        plan: StudentPlan,
        draws: Draws,
        learning_rate: float,
        folder: Path,
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student, self.teacher = derive_student(teacher, plan, seed=0), teacher
        self.network = nn.ModuleDict({"student": self.student, "teacher": self.teacher}).to(self.device).train()
        self.averaged = copy.deepcopy(self.network)
        self.scheduler = scheduler
        whole = {"first_step": 0, "last_step": sys.maxsize, "rank": 0, "processes": 1, "accumulation": 1}
        self.batches = micro_batches(draws, **whole, num_workers=0, device=self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        self.writer, self.steps = SummaryWriter(str(folder)), 0
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
        batch = next(self.batches)
        noise, timesteps = batch["noise"], batch["timesteps"]
        noisy = self.scheduler.add_noise(batch["images"], noise, timesteps)
        with torch.no_grad():
            self.teacher(noisy, timesteps)
        prediction = self.student(noisy, timesteps).sample
        distances = [
            F.mse_loss(self.student_maps[name].mean(1), self.teacher_maps[name].mean(1)) for name in self.student_maps
        ]
        task, alignment = F.mse_loss(prediction, noise), ALPHA * sum(distances) / len(distances)
        loss = task + alignment
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average()
        for name, value in (("loss", loss), ("loss_ddpm", task), ("loss_distill", alignment)):
            self.writer.add_scalar(name, value, self.steps)
        self.steps += 1
        return loss.item()

    @torch.no_grad()
    def average(self) -> None:
        source, target = self.network.state_dict(), self.averaged.state_dict()
        for name, value in source.items():
            target[name].copy_(target[name] * EMA_DECAY + value * (1 - EMA_DECAY))
