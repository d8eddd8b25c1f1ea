"""``RedDDPMPipeline``: samples images from a DDPM, teacher or student; image k depends on (seed, k) alone."""

import hashlib
import os
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from .lean import LEAN_SETTINGS, lean_execution
from .scheduling_ddim import SpacedDDIMScheduler

# Each sampler with its spacings of timesteps, the default first. "trailing" starts at the last timestep, where the
# initial noise belongs (Lin et al. 2024, arXiv 2305.08891).
SCHEDULERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "ddpm": (DDPMScheduler, ("leading",)),
    "ddim": (SpacedDDIMScheduler, ("trailing", "leading", "quad")),
    "dpm++": (DPMSolverMultistepScheduler, ("trailing",)),
}
OUTPUT_TYPES = ("pil", "np", "pt")


def choose_scheduler(name: str, spacing: str | None = None, eta: float = 0.0) -> tuple[type, str]:
    """The class and spacing of a sampler. Raises ValueError as ``RedDDPMPipeline.set_scheduler``."""
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}: expected one of {', '.join(SCHEDULERS)}")
    scheduler_class, spacings = SCHEDULERS[name]
    if spacing is not None and spacing not in spacings:
        raise ValueError(f"{name} has no spacing {spacing!r}: expected {' or '.join(spacings)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, not {eta}")
    if eta and name != "ddim":
        raise ValueError(f"{name} has no eta: leave it out, or sample by ddim")
    return scheduler_class, spacing or spacings[0]


def seeded_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a function of ``key``: the same numbers on any device and any number of processes."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class RedDDPMPipeline(DDPMPipeline):
    """A diffusers pipeline of ``unet`` (``UNet2DModel`` or ``RedUNet2DModel``) and ``scheduler``.

    Args:
        lean: run the network lean (``lean.py``): the same images with less live memory. "fast", "balanced" or
            "smallest", True for "balanced". ``RedDDPMPipeline.from_pretrained(folder, lean=True)`` takes it too.

    Raises:
        ValueError: an unknown lean setting.
    """

    def __init__(self, unet: UNet2DModel, scheduler: Any, lean: bool | str = False):
        super().__init__(unet, scheduler)
        self.eta = 0.0
        self.lean = "balanced" if lean is True else lean or None
        if self.lean not in (None, *LEAN_SETTINGS):
            raise ValueError(f"unknown lean setting {lean!r}: expected one of {', '.join(LEAN_SETTINGS)}")

    def set_scheduler(self, name: str, *, spacing: str | None = None, eta: float = 0.0) -> "RedDDPMPipeline":
        """Sample by "ddpm", "ddim" or "dpm++" from now on, with the noise schedule and prediction type unchanged.

        Args:
            spacing: of the timesteps. ddim has "trailing" (the default), "leading" and "quad"; ddpm is "leading" and
                dpm++ "trailing".
            eta: of ddim, the share of fresh noise in each step (Song et al. 2021, formula 16): 0 has none, 1 as much
                as ddpm of the smaller variance.

        Raises:
            ValueError: an unknown name, or a spacing or eta that this sampler cannot use.
        """
        scheduler_class, spacing = choose_scheduler(name, spacing, eta)
        scheduler = scheduler_class.from_config(self.scheduler.config, timestep_spacing=spacing)
        self.register_modules(scheduler=scheduler)
        self.eta = eta
        return self

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        num_images: int = 1,
        *,
        seed: int = 0,
        first_index: int = 0,
        num_inference_steps: int = 50,
        batch_size: int = 16,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample images ``first_index`` ... ``first_index + num_images - 1`` of the stream named by ``seed``.

        Args:
            num_inference_steps: network evaluations for each image (NFE).
            batch_size: images sampled at once; changes memory and speed, not the images (to float rounding, which
                moves a few pixels of the 8-bit image by one level).
            output_type: "pil", "np" (N, H, W, C) in [0, 1], or "pt" (N, C, H, W) in [0, 1].

        Raises:
            ValueError: a count below 1, more steps than the schedule has, or an unknown output type.
        """
        limit = self.scheduler.config.num_train_timesteps
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images and batch_size must be at least 1, not {num_images} and {batch_size}")
        if not 1 <= num_inference_steps <= limit:
            raise ValueError(f"num_inference_steps must be between 1 and {limit}, not {num_inference_steps}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}: expected one of {', '.join(OUTPUT_TYPES)}")

        images = []
        execution = lean_execution(self.unet, self.lean) if self.lean else nullcontext()
        with execution, self.progress_bar(total=num_images * num_inference_steps) as bar:
            for start in range(first_index, first_index + num_images, batch_size):
                indices = range(start, min(start + batch_size, first_index + num_images))
                images.append(self._sample_batch(indices, seed, num_inference_steps, bar).cpu())
        batch = torch.cat(images)
        self.maybe_free_model_hooks()
        if output_type != "pt":
            batch = batch.permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                batch = self.numpy_to_pil(batch)
        return ImagePipelineOutput(images=batch) if return_dict else (batch,)

    def _sample_batch(self, indices: range, seed: int, num_inference_steps: int, bar: Any) -> torch.Tensor:
        """-> (len(indices), C, H, W) in [0, 1]."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (self.unet.config.in_channels, height, width)
        generators = [seeded_generator(seed, "image", index) for index in indices]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        sample = noise.to(device) * self.scheduler.init_noise_sigma
        options = {"generator": generators} | ({"eta": self.eta} if self.eta else {})  # only DDIM takes eta
        # ddpm and ddim clip x_0 themselves; dpm++ does not, and a student may be trained to rely on it
        config = self.scheduler.config
        clips = config.prediction_type == "sample" and config.get("clip_sample")
        limit = config.get("clip_sample_range", 1.0) if clips else None
        for timestep in self.scheduler.timesteps:
            # the network may be half precision; the sample is small, and its steps are taken in float32
            network_input = self.scheduler.scale_model_input(sample, timestep).to(self.unet.dtype)
            prediction = self.unet(network_input, timestep).sample.float()
            if limit is not None:
                prediction = prediction.clamp(-limit, limit)
            sample = self.scheduler.step(prediction, timestep, sample, **options).prev_sample
            bar.update(len(indices))
        return (sample / 2 + 0.5).clamp(0, 1)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder of stock ``DDPMPipeline`` and scheduler: ``DiffusionPipeline.from_pretrained`` opens it too.

        What diffusers has no place for is not in it: ``lean``, ``eta``, and quad spacing, which becomes "trailing".
        """
        scheduler = self.scheduler
        if isinstance(scheduler, SpacedDDIMScheduler):
            scheduler = scheduler.to_stock()
        DDPMPipeline(self.unet, scheduler).save_pretrained(save_directory, **kwargs)
