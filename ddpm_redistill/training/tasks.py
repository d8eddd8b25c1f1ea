"""What the loop asks of a task. Each task is one file: ``denoise.py``, ``classify.py``."""

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from ..sources.image_source import ImageSource
from .gradient import Batch


class Task(Protocol):
    """What a network learns of images: what is drawn for a step, what a batch is, what is looked at, what is kept."""

    def prepared(self, images: ImageSource, device: torch.device) -> ImageSource:
        """What is learned in the place of ``images``: as a rule they themselves."""

    def draw(
        self, order: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
    ) -> Batch:
        """All that is drawn, by ``generator``, for a step's global batch, and what is known of its images: tensors
        (B, ...) by name.

        Args:
            order: which images the step sees, int64 (B,), on the CPU.
            shape: (C, H, W) of each.
        """

    def batch(self, images: torch.Tensor, drawn: Batch) -> Batch:
        """The batch that an objective is given: of a share of the global batch, its images (b, C, H, W) as they are
        held, and what was drawn for them."""

    def look(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Look at a network that has its averaged weights and is in evaluation mode, ``step`` steps after the start:
        write to ``folder``, which need not exist, or return figures, or both."""

    def write(self, network: nn.Module, folder: Path) -> None:
        """Write the finished network as a folder.

        Raises:
            UserError: the disk refused it.
        """
