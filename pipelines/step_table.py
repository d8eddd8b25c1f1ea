"""What a scheduler does in each of its steps, read off diffusers' own class as numbers.

A step of DDPM, of DDIM with any eta and of DPM-Solver++ 2M is linear in what goes in:

    x_0 = x0_scale * (x0_of_sample * sample + x0_of_prediction * prediction)
    previous sample = of_sample * sample + of_x0 * x_0 + of_limited * limited + of_before * before + of_noise * noise

``limited`` is x_0 after its clip or dynamic threshold, ``before`` that of the step before. The factors are found by
stepping the scheduler with ones and zeros: no formula is written twice, and a step can be taken without the scheduler,
whose own step waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

COLUMNS = ("x0_scale", "x0_of_sample", "x0_of_prediction", "of_sample")
COLUMNS += ("of_x0", "of_limited", "of_before", "of_noise")
LANES = 5
"""Samples that are stepped side by side, each to show one factor."""
ROUNDING = 1e-12
"""A factor below this is what is left of a difference of equal numbers."""


@dataclass(frozen=True)
class Limits:
    """What bounds x_0, all that a step does beside multiplying; None: nothing.

    ``clip_prediction``: a predicted x_0 is brought to [-r, r] before anything else. ``clip``: x_0 is brought to [-r, r]
    to be ``limited``; or ``threshold`` makes that of it, (B, C, H, W) -> the same. ``both``: x_0 counts beside the
    limited one, as in DDIM, which takes the direction of its step from it.
    """

    clip_prediction: float | None = None
    clip: float | None = None
    threshold: Callable[[Tensor], Tensor] | None = None
    both: bool = False


@dataclass(frozen=True)
class StepTable:
    """The steps of a sampler: ``timesteps`` int64 (K,), falling; ``factors`` float64 (K, 8), in the order of
    ``COLUMNS``; both on the CPU."""

    timesteps: Tensor
    factors: Tensor
    limits: Limits

    def uses(self, column: str) -> bool:
        """Is this factor other than 0 in any step?"""
        return bool(self.factors[:, COLUMNS.index(column)].any())


def read_step_table(scheduler: Any, num_inference_steps: int, eta: float = 0.0) -> StepTable:
    """Of a ``DDPMScheduler``, a ``DDIMScheduler`` (``eta``: its share of fresh noise) or a
    ``DPMSolverMultistepScheduler``; the scheduler itself is not stepped.

    Raises:
        ValueError: a scheduler or solver of another kind, or a step whose factors are not finite: x_0 cannot be found
            from a prediction of the noise where the schedule leaves nothing of the image.
    """
    config = scheduler.config
    clips_itself = isinstance(scheduler, DDPMScheduler | DDIMScheduler)
    solver = (config.get("algorithm_type"), config.get("solver_order"))
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        if solver[0] != "dpmsolver++" or solver[1] not in (1, 2):
            raise ValueError(f"DPM-Solver is sampled as dpmsolver++ of order 1 or 2, not as {solver[0]} of {solver[1]}")
    elif not clips_itself:
        raise ValueError(f"there is no sampling by {type(scheduler).__name__}: choose one by set_scheduler")

    limit = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None
    predicts_x0 = config.prediction_type == "sample"
    threshold = scheduler._threshold_sample if config.thresholding else None
    clip = limit if clips_itself and not predicts_x0 and threshold is None else None

    of_x0, timesteps = _x0_factors(scheduler, num_inference_steps, eta)
    factors = torch.cat([of_x0, _previous_factors(scheduler, num_inference_steps, eta)], 1)
    factors[factors.abs() < ROUNDING] = 0
    x0, limited = factors[:, COLUMNS.index("of_x0")], factors[:, COLUMNS.index("of_limited")]
    if not clips_itself or (clip is None and threshold is None):  # all that is made of x_0 is made of the limited one
        limited += x0
        x0.zero_()
    bad = (~factors.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"timestep {int(timesteps[bad[0]])} cannot be sampled by {type(scheduler).__name__}: with this noise"
            f" schedule and prediction_type {config.prediction_type} a factor of its step is not finite"
        )
    return StepTable(timesteps, factors, Limits(limit if predicts_x0 else None, clip, threshold, bool(x0.any())))


def _x0_factors(scheduler: Any, count: int, eta: float) -> tuple[Tensor, Tensor]:
    """(K, 3), the first of ``COLUMNS``; and the timesteps. In the brackets the larger factor is 1: where little of the
    image is left, x_0 is a small difference many times enlarged, and loses least when it is taken first."""
    probe = _probe(scheduler, count, clip_sample=False)
    sample, prediction = _lanes({0: 1.0}), _lanes({1: 1.0})
    rows = []
    for timestep in probe.timesteps:
        found = _step(probe, prediction, timestep, sample, eta)
        x0 = getattr(found, "pred_original_sample", None)
        rows.append((probe.model_outputs[-1] if x0 is None else x0).flatten()[:2].double())
    found = torch.stack(rows)
    scale = torch.where(found[:, :1].abs() > found[:, 1:].abs(), found[:, :1], found[:, 1:])
    return torch.cat([scale, found / scale], 1), probe.timesteps


def _previous_factors(scheduler: Any, count: int, eta: float) -> Tensor:
    """(K, 5): of the previous sample, in the order of ``COLUMNS``.

    A probe that predicts x_0 and clips at 1. Lane 0 has a sample of 1; lane 1 an x_0 of 1 in the first step, the third
    and so on, lane 2 in the others, so that one of them shows x_0 now and one that of the step before; lane 3 an x_0 of
    2, clipped to 1; lane 4 nothing but noise.
    """
    probe = _probe(scheduler, count, prediction_type="sample", clip_sample=True, clip_sample_range=1.0)
    sample = _lanes({0: 1.0})
    rows = []
    for index, timestep in enumerate(probe.timesteps):
        now = 1 + index % 2
        drawn = torch.randn((LANES, 1, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = _step(probe, _lanes({now: 1.0, 3: 2.0}), timestep, sample, eta).prev_sample.double()
        noise = found[4] / drawn[4]
        of_sample, first, second, clipped, _ = (found - noise * drawn).flatten()
        of_now, of_before = (first, second) if now == 1 else (second, first)
        # a clip leaves x0 * 1 + limited * 1 of an x_0 of 1, and x0 * 2 + limited * 1 of one of 2
        of_x0 = clipped - of_now if isinstance(probe, DDPMScheduler | DDIMScheduler) else of_now
        rows.append(torch.stack([of_sample, of_x0, of_now - of_x0, of_before, noise.flatten()[0]]))
    return torch.stack(rows)


def _probe(scheduler: Any, count: int, **changes: Any) -> Any:
    """Another scheduler of the same class, noise schedule and timesteps, on the CPU."""
    probe = type(scheduler).from_config(scheduler.config, thresholding=False, **changes)
    probe.set_timesteps(count)
    return probe


def _step(probe: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, eta: float) -> Any:
    options = {"eta": eta} if isinstance(probe, DDIMScheduler) else {}
    return probe.step(prediction, timestep, sample, generator=torch.Generator().manual_seed(0), **options)


def _lanes(values: dict[int, float]) -> Tensor:
    """float64 (LANES, 1, 1, 1): zeros but for these."""
    found = torch.zeros(LANES, 1, 1, 1, dtype=torch.float64)
    for lane, value in values.items():
        found[lane] = value
    return found
