"""``RedDDPMPipeline``: samples images from a DDPM, teacher or student; image k depends on (seed, k) alone."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, LDMPipeline, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from .batch_sampler import BatchSampler
from .conditioning import Conditioning, conditioning_of
from .denoise import denoising_step
from .latents import Autoencoder, pixels_per_latent
from .lean import LEAN_SETTINGS, lean_execution
from .replay import Replay
from .scheduling_ddim import SpacedDDIMScheduler
from .step_table import Limits, StepTable, read_step_table

# Each sampler with its spacings of timesteps, the default first. "trailing" starts at the last timestep, where the
# initial noise belongs (Lin et al. 2024, arXiv 2305.08891).
SCHEDULERS: dict[str, tuple[type, tuple[str, ...]]] = {
    "ddpm": (DDPMScheduler, ("leading",)),
    "ddim": (SpacedDDIMScheduler, ("trailing", "leading", "quad")),
    "dpm++": (DPMSolverMultistepScheduler, ("trailing",)),
}
OUTPUT_TYPES = ("pil", "np", "pt")
COMPILE = ("auto", True, False)
COMPILE_FROM = 4000
"""Network evaluations of a run on a GPU from which it compiles by itself. A compilation takes about a minute, and so
has to save 15 ms an evaluation here. What it saves is not measured yet."""


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


class RedDDPMPipeline(DDPMPipeline):
    """A diffusers pipeline of ``unet`` (``UNet2DModel`` or ``RedUNet2DModel``) and ``scheduler``.

    Args:
        lean: run the network lean (``lean.py``): the same images with less live memory. "fast", "balanced" or
            "smallest", True for "balanced". ``RedDDPMPipeline.from_pretrained(folder, lean=True)`` takes it too.
        compile: how a step runs, with the same images to rounding. True: compiled by torch (inductor), and on a GPU
            captured in a CUDA graph. False: as it is. "auto": as it is on a CPU; captured on a GPU, and there compiled
            too where a call or run is of ``COMPILE_FROM`` network evaluations or more and not lean. A network with
            forward hooks, or offloaded by accelerate, stays as it is, since a graph calls no hooks. A captured network
            may get other weights in place (``load_state_dict``).
        id2label: of a network with class embeddings, the names of the classes by number (``conditioning_of``); None
            where no name and no null class is known. Kept in ``model_index.json``.
        learned_guidance: the guidance scale that a student has learned from its teacher. Kept there too.
        vqvae: of a latent diffusion model its autoencoder, a ``VQModel`` or ``AutoencoderKL`` (``latents.py``):
            ``unet`` then denoises latents, and images are what it decodes them to. ``LDMPipeline`` has it by this name.

    Raises:
        ValueError: an unknown lean setting or value of ``compile``; lean and ``compile=True``, since a compiler has an
            order of its own in which it takes and frees memory; or ``id2label`` is not of this network.
    """

    _optional_components = ["vqvae"]  # noqa: RUF012  (diffusers reads this list)

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        lean: bool | str = False,
        compile: bool | str = "auto",
        id2label: Mapping[Any, str] | None = None,
        learned_guidance: float | None = None,
        vqvae: Autoencoder | None = None,
    ):
        super().__init__(unet, scheduler)
        self.register_modules(vqvae=vqvae)
        embeddings = getattr(unet.config, "num_class_embeds", None)  # of other networks there may be no word of it
        self.conditioning: Conditioning | None = conditioning_of(embeddings, id2label, learned_guidance)
        self.eta = 0.0
        self.lean = "balanced" if lean is True else lean or None
        self.compile = compile
        if self.lean not in (None, *LEAN_SETTINGS):
            raise ValueError(f"unknown lean setting {lean!r}: expected one of {', '.join(LEAN_SETTINGS)}")
        if compile not in COMPILE:
            raise ValueError(f"unknown compile {compile!r}: expected 'auto', True or False")
        if self.lean and compile is True:
            raise ValueError("lean execution is not compiled: leave out compile or lean")
        self._replays: dict[Any, Replay] = {}
        self._weights: Any = None
        self._table: tuple[Any, Any, StepTable] | None = None

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
        class_labels: int | Sequence[int] | None = None,
        guidance_scale: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Sample images ``first_index`` ... ``first_index + num_images - 1`` of the stream named by ``seed``.

        Their noise is drawn on the pipeline's device (``image_noise.py``): CPUs and GPUs make other images of one seed.

        Args:
            num_inference_steps: network evaluations for each image (NFE).
            batch_size: images sampled at once; changes memory and speed, not the images (to float rounding, which
                moves a few pixels of the 8-bit image by one level).
            output_type: "pil", "np" (N, H, W, C) in [0, 1], or "pt" (N, C, H, W) in [0, 1].
            class_labels, guidance_scale: as ``batch_sampler``.

        Raises:
            ValueError: a count below 1, more steps than the schedule has, an unknown output type, or as
                ``batch_sampler``.
        """
        limit = self.scheduler.config.num_train_timesteps
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images and batch_size must be at least 1, not {num_images} and {batch_size}")
        if not 1 <= num_inference_steps <= limit:
            raise ValueError(f"num_inference_steps must be between 1 and {limit}, not {num_inference_steps}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}: expected one of {', '.join(OUTPUT_TYPES)}")

        batches = [
            range(start, min(start + batch_size, first_index + num_images))
            for start in range(first_index, first_index + num_images, batch_size)
        ]
        sampler = self.batch_sampler(
            min(batch_size, num_images),
            num_inference_steps,
            len(batches),
            class_labels=class_labels,
            guidance_scale=guidance_scale,
        )
        with self.progress_bar(total=num_images * num_inference_steps) as bar:
            batch = torch.cat([sampler(indices, seed, partial(bar.update, len(indices))) for indices in batches]).cpu()
        self.maybe_free_model_hooks()
        if output_type != "pt":
            batch = batch.permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                batch = self.numpy_to_pil(batch)
        return ImagePipelineOutput(images=batch) if return_dict else (batch,)

    def batch_sampler(
        self,
        batch_size: int,
        num_inference_steps: int,
        num_batches: int = 1,
        *,
        class_labels: int | Sequence[int] | None = None,
        guidance_scale: float | None = None,
    ) -> BatchSampler:
        """What samples batches of up to ``batch_size`` images, ``num_batches`` of them, by the scheduler of now.

        Args:
            class_labels: of a network with classes, the label of all images, or labels that they take in turn: image k
                has ``class_labels[k % len(class_labels)]``. None: all classes in turn.
            guidance_scale: of classifier-free guidance, in diffusers' terms: 1 is the conditional prediction alone. An
                image is then run twice in one batch, with its label and with the null class; not by a student that
                has learned this very guidance. None: as the network is.

        Raises:
            ValueError: as ``step_table`` and ``check_classes``.
        """
        turns, doubled = self.check_classes(class_labels, guidance_scale)
        guidance = guidance_scale if doubled else None
        table = self.step_table(num_inference_steps)
        compiled = self.compiles(num_batches * num_inference_steps)
        execution: Callable[[], AbstractContextManager[Any]] = nullcontext
        if self.lean:
            execution = partial(lean_execution, self.unet, self.lean)
        return BatchSampler(
            self._replay(table.limits, compiled, guidance),
            table,
            shape=self.sample_shape,
            device=self._execution_device,
            batch_size=batch_size,
            execution=execution,
            turns=turns,
            null=self.conditioning.null if self.conditioning and doubled else None,
            vqvae=self.vqvae,
        )

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises: an image, or its latents."""
        config = self.unet.config
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        return config.in_channels, height, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        if self.vqvae is None:
            return self.sample_shape
        _, height, width = self.sample_shape
        pixels = pixels_per_latent(self.vqvae.config)
        return self.vqvae.config.out_channels, height * pixels, width * pixels

    def check_classes(
        self, class_labels: int | Sequence[int] | None = None, guidance_scale: float | None = None
    ) -> tuple[tuple[int, ...] | None, bool]:
        """The labels that images take in turn, None without classes; and whether guidance takes two passes.

        Raises:
            ValueError: labels or guidance that this network cannot have.
        """
        if self.conditioning is not None:
            return self.conditioning.labels(class_labels), self.conditioning.passes_with(guidance_scale)
        if class_labels is not None or guidance_scale is not None:
            raise ValueError("this model has no classes: leave out labels and guidance")
        return None, False

    def step_table(self, num_inference_steps: int) -> StepTable:
        """``read_step_table`` of the scheduler of now, which takes as long as a few steps of a small network: the last
        one is kept."""
        config, at = self.scheduler.config, (num_inference_steps, self.eta)  # another setting is another config object
        if self._table is None or self._table[0] is not config or self._table[1] != at:
            self._table = (config, at, read_step_table(self.scheduler, *at))
        return self._table[2]

    def compiles(self, evaluations: int) -> bool:
        """Does a run of so many network evaluations, each of a batch, compile?"""
        if self.compile != "auto":
            return bool(self.compile)
        return self._captures and not self.lean and evaluations >= COMPILE_FROM

    @property
    def _captures(self) -> bool:
        if self._execution_device.type != "cuda" or self.compile is False or hasattr(self.unet, "_hf_hook"):
            return False
        hooks = (module._forward_hooks or module._forward_pre_hooks for module in self.unet.modules())
        return self.compile is True or not any(hooks)

    def _replay(self, limits: Limits, compiled: bool, guidance_scale: float | None) -> Replay:
        """What was compiled or captured is kept while the network's weights stay where they are."""
        captured = self._captures
        step = denoising_step(self.unet, limits, guidance_scale)
        if not compiled and not captured:
            return Replay(step)
        tensors = itertools.chain(self.unet.parameters(), self.unet.buffers())
        weights = (self.unet.training, [(tensor.data_ptr(), tensor.dtype) for tensor in tensors])
        if weights != self._weights:
            self._replays.clear()
            self._weights = weights
        key = (limits, compiled, captured, self.lean, guidance_scale)
        if key not in self._replays:
            self._replays[key] = Replay(step, compiled=compiled, captured=captured)
        return self._replays[key]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder of stock ``DDPMPipeline``, of latents ``LDMPipeline``, and scheduler:
        ``DiffusionPipeline.from_pretrained`` opens it too.

        What diffusers has no place for is not in it: ``lean``, ``eta``, and quad spacing, which becomes "trailing".
        """
        scheduler = self.scheduler
        if isinstance(scheduler, SpacedDDIMScheduler):
            scheduler = scheduler.to_stock()
        stock: Any = DDPMPipeline(self.unet, scheduler)
        if self.vqvae is not None:
            stock = LDMPipeline(self.vqvae, self.unet, scheduler)
        if self.conditioning is not None:
            entries = self.conditioning.index_entries
            stock.register_to_config(**{key: value for key, value in entries.items() if value is not None})
        stock.save_pretrained(save_directory, **kwargs)
