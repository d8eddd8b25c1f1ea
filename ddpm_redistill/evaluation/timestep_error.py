"""Where along the noise schedule a network predicts the noise worse than another: no sampling, one pass a timestep."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..core.losses import epsilon_of
from ..errors import UserError
from ..pipelines.conditioning import guided, with_null
from ..pipelines.latents import Autoencoder, encode
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..pipelines.seeds import seeded_generator

NUM_TIMESTEPS = 20


@torch.no_grad()
def error_by_timestep(
    pipelines: Mapping[str, RedDDPMPipeline],
    images: Dataset[Tensor],
    *,
    timesteps: Sequence[int] | None = None,
    num_images: int = 128,
    batch_size: int = 64,
    seed: int = 0,
    labels: Mapping[str, Tensor] | None = None,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Mean over images of MSE(epsilon, noise) at each timestep, for every pipeline on the same noisy images.

    Each network's output is brought to epsilon, whatever it predicts. For one that predicts the sample that divides
    its error by the noise there is: its MSE in epsilon is SNR = abar / (1 - abar) times that in x_0, so at the first
    timesteps (SNR 1e4 at timestep 0 of Ho et al.'s schedule) values of 1 and more stand for errors nobody sees.

    Args:
        pipelines: networks by name, in eval mode, of one noise schedule; each is run where it is and as it is.
        images: (C, H, W) each, uint8 or float in [-1, 1], of the size and channels of the networks.
        timesteps: None for 20 spread evenly over the schedule, its first and last included.
        num_images: chosen by ``seed``; all of them where there are fewer.
        batch_size: changes memory and speed; the noise of an image depends on (seed, its index, timestep) alone.
        labels: by network with classes, of all images in its numbers, int64 (N,).
        guidance: of networks with classes, as ``RedDDPMPipeline.batch_sampler``: their noise is predicted as it is when
            they sample.

    Returns:
        ``timesteps``, ``num_images`` (those used), and under each pipeline's name one error a timestep.

    Raises:
        UserError: no pipeline or image, a count below 1, images that the networks do not take, no labels for a network
            with classes, schedules that differ, or a timestep outside of the schedule or without any noise. Before any
            network is run.
    """
    abar = _common_schedule(pipelines)
    chosen_timesteps = _checked_timesteps(timesteps, abar)
    length = len(images)  # type: ignore[arg-type]
    if min(length, num_images, batch_size) < 1:
        raise UserError(
            f"the error by timestep needs at least 1 image and a batch of 1, got {length} images, "
            f"num_images {num_images}, batch_size {batch_size}"
        )
    # not the first ones: data may be sorted
    order = torch.randperm(length, generator=seeded_generator(seed, "timestep_error"))[:num_images].tolist()
    clean = torch.stack([images[index] for index in order])
    if clean.dtype != torch.uint8 and not (clean.is_floating_point() and clean.abs().max() <= 1 + 1e-4):
        raise UserError(f"images must be uint8 or float in [-1, 1], got {clean.dtype} up to {clean.abs().max()}")
    for name, pipeline in pipelines.items():
        config, shape = pipeline.unet.config, pipeline.image_shape
        if tuple(clean.shape[1:]) != shape:
            raise UserError(f"images of shape {tuple(clean.shape[1:])} are not what {name} takes: {shape}")
        if getattr(config, "num_class_embeds", None) is not None and name not in (labels or {}):
            raise UserError(f"{name} has classes, and there are no labels for it of these images")

    clean = clean / 127.5 - 1 if clean.dtype == torch.uint8 else clean.float()
    vqvae = _common_autoencoder(pipelines)
    if vqvae is not None:
        clean = torch.cat([encode(vqvae, batch).cpu() for batch in clean.split(batch_size)])

    totals = {name: [0.0] * len(chosen_timesteps) for name in pipelines}
    passes = len(pipelines) * len(chosen_timesteps) * len(clean)
    with tqdm(total=passes, desc="error by timestep", unit="image") as bar:
        for row, timestep in enumerate(chosen_timesteps):
            for start in range(0, len(clean), batch_size):
                batch = clean[start : start + batch_size]
                indices = order[start : start + batch_size]
                noise = torch.stack([_noise(batch.shape[1:], seed, index, timestep) for index in indices])
                noisy = abar[timestep].sqrt() * batch + (1 - abar[timestep]).sqrt() * noise
                for name, pipeline in pipelines.items():
                    given = labels[name][indices] if labels and name in labels else None
                    epsilon = _predicted_noise(pipeline, noisy, timestep, abar[timestep], given, guidance)
                    totals[name][row] += float((epsilon - noise).double().square().flatten(1).mean(1).sum())
                    bar.update(len(batch))
    means = {name: [total / len(clean) for total in sums] for name, sums in totals.items()}
    return {"timesteps": chosen_timesteps, "num_images": len(clean), **means}


def _predicted_noise(
    pipeline: RedDDPMPipeline,
    noisy: Tensor,
    timestep: int,
    abar: Tensor,
    labels: Tensor | None,
    guidance: float | None,
) -> Tensor:
    """float32 (B, C, H, W) and labels (B,) on the CPU -> float32 (B, C, H, W); the network runs on its own device, in
    its own precision."""
    unet, inputs, scale = pipeline.unet, noisy, None
    if labels is not None:
        null, doubled = pipeline.conditioning.null, pipeline.check_classes(None, guidance)[1]
        if doubled:
            inputs, labels, scale = noisy.repeat(2, 1, 1, 1), with_null(labels, null), guidance
    classes = () if labels is None else (labels.to(unet.device),)
    prediction = unet(inputs.to(unet.device, unet.dtype), timestep, *classes).sample.float().cpu()
    if scale is not None:
        prediction = guided(prediction, scale)
    return epsilon_of(prediction, noisy, abar, pipeline.scheduler.config.prediction_type)


def _noise(shape: torch.Size, seed: int, index: int, timestep: int) -> Tensor:
    return torch.randn(shape, generator=seeded_generator(seed, "timestep_error", index, timestep))


def _common_schedule(pipelines: Mapping[str, RedDDPMPipeline]) -> Tensor:
    """abar (T,), the cumulative product of alpha, on the CPU."""
    if not pipelines:
        raise UserError("the error by timestep needs at least one pipeline")
    (first, abar), *others = [(name, p.scheduler.alphas_cumprod.float().cpu()) for name, p in pipelines.items()]
    for name, other in others:
        if other.shape != abar.shape or not torch.allclose(other, abar, rtol=1e-4, atol=0):
            raise UserError(f"{name} and {first} have different noise schedules: no timestep means the same to both")
    return abar


def _common_autoencoder(pipelines: Mapping[str, RedDDPMPipeline]) -> Autoencoder | None:
    """Of networks of latents; None of networks of pixels."""
    first, *others = [pipeline.vqvae for pipeline in pipelines.values()]
    state = {} if first is None else first.state_dict()
    for other in others:
        found = {} if other is None else other.state_dict()
        if state.keys() != found.keys() or not all(torch.equal(state[key], found[key]) for key in state):
            raise UserError("the networks do not denoise latents of one autoencoder: their errors do not compare")
    return first


def _checked_timesteps(timesteps: Sequence[int] | None, abar: Tensor) -> list[int]:
    last = len(abar) - 1
    if timesteps is None:
        spread = torch.linspace(0, last, min(NUM_TIMESTEPS, len(abar)), dtype=torch.float64)
        timesteps = spread.round().int().tolist()
    for timestep in timesteps:
        if not 0 <= timestep <= last:
            raise UserError(f"timestep {timestep} is outside of the schedule's 0 to {last}")
        if abar[timestep] == 1:  # nothing was added, so there is nothing to predict
            raise UserError(f"there is no noise at timestep {timestep} of this schedule")
    return list(timesteps)
