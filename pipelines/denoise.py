"""One step of sampling as a function of tensors: nothing in it waits for the device, so that it can be replayed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .conditioning import guided
from .step_table import Limits

Step = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""(sample, timestep, factors, noise, before, labels) -> (previous sample, limited x_0), all on one device.

``sample``, ``noise``, ``before`` and both results: float32 (B, C, H, W), ``before`` the limited x_0 of the step before;
``timestep``: int64 (); ``factors``: float32 (8,), a row of ``StepTable.factors``. ``noise`` is None for a sampler
without fresh noise, ``before`` for one that does not look back. ``labels``: int64 (B,), the images' classes, or (2 B,)
with guidance (``conditioning.with_null``); None for a network without classes.
"""


def denoising_step(unet: Any, limits: Limits, guidance_scale: float | None = None) -> Step:
    """The step of ``step_table.py`` with this network, whose precision it may be; the rest is float32.

    ``guidance_scale``: run each image twice in one batch, with its label and with the null class, and go from the one
    prediction past the other; None: once.
    """

    def step(
        sample: Tensor,
        timestep: Tensor,
        factors: Tensor,
        noise: Tensor | None,
        before: Tensor | None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x0_scale, x0_of_sample, x0_of_prediction, of_sample, of_x0, of_limited, of_before, of_noise = factors.unbind()
        inputs = sample if guidance_scale is None else sample.repeat(2, 1, 1, 1)
        prediction = unet(inputs.to(unet.dtype), timestep, *(() if labels is None else (labels,))).sample.float()
        if guidance_scale is not None:
            prediction = guided(prediction, guidance_scale)
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
