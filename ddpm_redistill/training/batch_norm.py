"""BatchNorm over the batch of all processes, so that what is trained does not depend on their number.

torch's own SyncBatchNorm refuses tensors that are not on an accelerator, and many runs here are on CPUs.
"""

from typing import Any

import torch
from torch import distributed, nn

from ..config import TrainingConfig


class BatchNormOverProcesses(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are over the batches of all processes, which must be of one size.

    What a subclass has as members is applied to its output, in order: timm's BatchNormAct2d has a dropout and an
    activation.

    (B, C, H, W) -> (B, C, H, W) in its dtype; statistics in float32 or better. All processes call it together.
    Gradients are those of the sum of all processes' losses: the loop takes their mean over the processes.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._over_processes(x) if self.training else super().forward(x)
        for after in self.children():
            x = after(x)
        return x

    def _over_processes(self, x: torch.Tensor) -> torch.Tensor:
        assert self.momentum is not None, "a cumulative average is not needed here"
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.stack([wide.mean((0, 2, 3)), wide.var((0, 2, 3), correction=0)])  # (2, C)
        means, variances = _Gather.apply(own).unbind(1)  # (processes, C) each
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        with torch.no_grad():
            count = wide.numel() // wide.shape[1] * len(means)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)  # type: ignore[union-attr]
            unbiased = variance * (count / max(1, count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        # One multiply-add, so that backward keeps x and no centred copy of it.
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)


class _Gather(torch.autograd.Function):
    """(...) of each process -> (processes, ...), the same in all of them."""

    @staticmethod
    def forward(context: Any, own: torch.Tensor) -> torch.Tensor:
        every = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(every, own.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


def batch_norm_record(network: nn.Module, training: TrainingConfig) -> dict[str, int]:
    """What a run keeps of a network with BatchNorm, whose result depends on it: the images of a micro-batch over all
    processes, over which it takes its statistics."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return {}
    return {"batch_norm_over": training.global_batch // training.gradient_accumulation}


def share_batch_norms(network: nn.Module) -> None:
    """Let the BatchNorms of a network take their statistics over all processes; in place.

    Parameters, buffers, their names and what is saved stay as they are.
    """
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.__class__ = BatchNormOverProcesses
