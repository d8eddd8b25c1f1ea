"""One step of sampling as a function of tensors: nothing in it waits for the device, so that it can be replayed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .step_table import Limits

Step = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""(sample, timestep, factors, noise, before) -> (previous sample, limited x_0), all on one device.

``sample``, ``noise``, ``before`` and both results: float32 (B, C, H, W), ``before`` the limited x_0 of the step before;
``timestep``: int64 (); ``factors``: float32 (8,), a row of ``StepTable.factors``. ``noise`` is None for a sampler
without fresh noise, ``before`` for one that does not look back.
"""


def denoising_step(unet: Any, limits: Limits) -> Step:
    """The step of ``step_table.py`` with this network, whose precision it may be; the rest is float32."""

    def step(
        sample: Tensor, timestep: Tensor, factors: Tensor, noise: Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x0_scale, x0_of_sample, x0_of_prediction, of_sample, of_x0, of_limited, of_before, of_noise = factors.unbind()
        prediction = unet(sample.to(unet.dtype), timestep).sample.float()
        x0 = x0_scale * (x0_of_sample * sample + x0_of_prediction * prediction)
        if limits.clip_prediction is not None:
            x0 = x0.clamp(-limits.clip_prediction, limits.clip_prediction)
        limited = x0
        if limits.threshold is not None:
            limited = limits.threshold(x0)
        elif limits.clip is not None:
            limited = x0.clamp(-limits.clip, limits.clip)
        previous = of_sample * sample + of_limited * limited
        if limits.both:
            previous = previous + of_x0 * x0
        if before is not None:
            previous = previous + of_before * before
        if noise is not None:
            previous = previous + of_noise * noise
        return previous, limited

    return step
