"""The task of a DDPM: predict the noise of noisy images (Ho et al. 2020, arXiv 2006.11239)."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import nn

from ..config import DistillConfig, TeachConfig
from ..core.augment import flipped
from ..pipelines.latents import Autoencoder
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..sources.image_source import ImageSource
from ..sources.latent_images import encoded
from .classes import Classes
from .gradient import Batch
from .run_folder import write_folder
from .samples import sample_grid

log = logging.getLogger("ddpm_redistill")


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """A ``Task`` (``tasks.py``).

    Args:
        scheduler: the noise schedule that goes into the result's folder.
        horizontal_flip: flip half of the images left to right.
        classes: of a class-conditional network.
        vqvae: the autoencoder whose latents are learned, which goes into the result's folder; None: pixels are.
    """

    scheduler: DDPMScheduler
    horizontal_flip: bool = False
    classes: Classes | None = None
    vqvae: Autoencoder | None = None

    def prepared(self, images: ImageSource, device: torch.device) -> ImageSource:
        return images if self.vqvae is None else encoded(images, self.vqvae.to(device), device)

    def draw(
        self, order: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
    ) -> Batch:
        """``noise`` (B, C, H, W), ``timesteps`` int64 (B,), ``flips`` bool (B,), and of a class-conditional network
        ``class_labels`` int64 (B,)."""
        count = (len(order),)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, count, generator=generator, device=device)
        flips = torch.rand(count, generator=generator, device=device) < 0.5
        noise = torch.randn(count + shape, generator=generator, device=device)
        drawn = {"noise": noise, "timesteps": timesteps, "flips": flips}
        if self.classes is not None:  # drawn last: a run without classes has the same numbers
            labels, null = self.classes.labels[order].to(device), self.classes.conditioning.null
            if null is not None:
                dropped = torch.rand(count, generator=generator, device=device) < self.classes.dropout
                labels = labels.masked_fill(dropped, null)
            drawn["class_labels"] = labels
        return drawn

    def batch(self, images: torch.Tensor, drawn: Batch) -> Batch:
        """``images`` (b, C, H, W) in [-1, 1], or latents as they are, and what was drawn but for the flips."""
        if self.horizontal_flip:
            images = flipped(images, drawn["flips"])
        if images.dtype == torch.uint8:
            images = images.float().div_(127.5).sub_(1)
        return {"images": images, **{name: value for name, value in drawn.items() if name != "flips"}}

    def look(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Writes a grid of samples."""
        sampler = self._pipeline(network, compile=False).set_scheduler("ddim")
        sampler.set_progress_bar_config(disable=True)
        sample_grid(sampler, folder / f"step-{step:06d}.png")
        return {}

    def write(self, network: nn.Module, folder: Path) -> None:
        parts = [network, *filter(None, [self.vqvae])]
        need = sum(value.nbytes for part in parts for value in part.state_dict().values())
        write_folder(folder, need, self._pipeline(network).save_pretrained)

    def _pipeline(self, network: nn.Module, **settings: bool) -> RedDDPMPipeline:
        named = self.classes.conditioning.index_entries if self.classes else {}
        return RedDDPMPipeline(network, self.scheduler, vqvae=self.vqvae, **named, **settings)


def denoising(
    config: DistillConfig | TeachConfig,
    scheduler: DDPMScheduler,
    images: ImageSource,
    classes: Classes | None,
    vqvae: Autoencoder | None,
) -> Denoise:
    """The task of a run on ``images``; says what its sample grids cannot show."""
    channels = images[0].shape[0]
    if config.training.sample_every and channels not in (1, 3):
        log.info("sample grids show the first channels of %d, as grey or RGB", channels)
    return Denoise(scheduler=scheduler, horizontal_flip=config.horizontal_flip, classes=classes, vqvae=vqvae)
