"""Samples a batch of images, step by step, without waiting for the device."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .conditioning import labels_of, with_null
from .image_noise import ImageNoise
from .latents import Autoencoder, decode
from .replay import Replay
from .step_table import StepTable


class BatchSampler:
    """Made by ``RedDDPMPipeline.batch_sampler`` for one sampler, number of steps and batch size.

    Args:
        step: ``denoising_step`` of the network, to be run as ``Replay`` does.
        table: of the sampler, whose ``limits`` are the step's.
        shape: (C, H, W) of an image, or of its latents.
        device: of the network, and of the noise.
        batch_size: images of a batch at most.
        execution: a context in which the network runs, lean or as it is.
        turns: the labels that images take in turn; None for a network without classes.
        null: the null class, where the step is one with guidance.
        vqvae: the autoencoder whose latents are sampled; None where they are pixels.
    """

    def __init__(
        self,
        step: Replay,
        table: StepTable,
        *,
        shape: tuple[int, int, int],
        device: torch.device,
        batch_size: int,
        execution: Callable[[], AbstractContextManager[Any]],
        turns: Sequence[int] | None = None,
        null: int | None = None,
        vqvae: Autoencoder | None = None,
    ):
        self.step = step
        self.shape = shape
        self.device = device
        self.batch_size = batch_size
        self.execution = execution
        self.turns = turns
        self.null = null
        self.vqvae = vqvae
        self.timesteps = table.timesteps.to(device)
        self.factors = table.factors.float().to(device)
        self.draws, self.looks_back = table.uses("of_noise"), table.uses("of_before")

    @torch.no_grad()
    def prepare(self) -> None:
        """Compile and capture the step now, rather than with the first batch."""
        if not self.step.is_plain:
            noise = torch.zeros(self.batch_size, *self.shape, device=self.device)
            with self.execution():
                self.step.prepare(*self._inputs(0, noise, noise, noise, self._labels(range(self.batch_size))))

    @torch.no_grad()
    def __call__(self, indices: range, seed: int, after_step: Callable[[], Any] | None = None) -> Tensor:
        """Images ``indices``, consecutive and no more than ``batch_size``: float32 (len(indices), C, H, W) in [0, 1],
        on the device, where they may still be in the making."""
        count = len(indices)
        if not self.step.is_plain:  # another shape would be compiled and captured anew: make more, and drop them
            indices = range(indices.start, indices.start + self.batch_size)
        noise = ImageNoise(seed, indices, self.shape, self.device)
        sample = noise.draw()
        before = torch.zeros_like(sample)
        labels = self._labels(indices)
        with self.execution():
            for index in range(len(self.timesteps)):
                fresh = noise.draw() if self.draws else None
                sample, before = self.step(*self._inputs(index, sample, fresh, before, labels))
                if after_step is not None:
                    after_step()
        sample = sample[:count]
        if self.vqvae is not None:
            sample = decode(self.vqvae, sample)
        return (sample / 2 + 0.5).clamp(0, 1)

    def _labels(self, indices: range) -> Tensor | None:
        """Of images ``indices``, as ``denoise.Step`` takes them."""
        if self.turns is None:
            return None
        labels = labels_of(indices, self.turns, self.device)
        return labels if self.null is None else with_null(labels, self.null)

    def _inputs(
        self, index: int, sample: Tensor, noise: Tensor | None, before: Tensor, labels: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Of the step, as ``denoise.Step``."""
        used = (noise if self.draws else None, before if self.looks_back else None, labels)
        return sample, self.timesteps[index], self.factors[index], *used
