"""The noise schedule that a model was trained with, from ``scheduler_config.json``, whatever sampler that is of."""

from typing import Any

from diffusers import DDPMScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers

from ..errors import UserError
from .image_files import one_line

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SAMPLERS = {kind.name for kind in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"} | {
    *("DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"),
    *("RePaintScheduler", "DPMSolverMultistepInverseScheduler"),
}
"""Classes of diffusers whose settings tell of a DDPM noise schedule, which is what is read here."""
FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
"""Values of variance_type that need no network. A learned one has been left out before, or refused."""
ONLY_DDPM = ("sigmoid", "laplace")
"""Beta schedules that the other samplers do not know by name."""


def noise_schedule(ref: str, config: dict[str, Any]) -> DDPMScheduler:
    """The DDPM noise schedule of a model; the sampler is chosen later. ``config`` empty: diffusers' default.

    Raises:
        UserError: it is none, or one that a network of its prediction type cannot be sampled over.
    """
    if not config:
        return DDPMScheduler()
    try:
        kind = config.get("_class_name", "DDPMScheduler")
        if not isinstance(kind, str) or kind not in SAMPLERS:
            raise ValueError(f"it is of {one_line(ValueError(kind))}")
        if config.get("timestep_type") == "continuous":
            raise ValueError("its timesteps are continuous")
        scheduler = DDPMScheduler.from_config(config)
        told = scheduler.config
        if told.beta_schedule in ONLY_DDPM and told.trained_betas is None:
            plain = DDPMScheduler.from_config(config, rescale_betas_zero_snr=False)
            scheduler = DDPMScheduler.from_config(config, trained_betas=plain.betas.tolist())
        kept = scheduler.alphas_cumprod  # the share of the image that is left at each timestep
        if not kept.isfinite().all() or kept.min() < 0 or kept.max() > 1:
            raise ValueError("its betas leave the range from 0 to 1")
        if len(kept) != told.num_train_timesteps:
            raise ValueError(f"it has {len(kept)} trained_betas for num_train_timesteps {told.num_train_timesteps}")
        if told.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"its prediction_type is {told.prediction_type}")
        if told.variance_type not in FIXED:
            raise ValueError(f"its variance_type is {told.variance_type}")
    except (TypeError, ValueError, IndexError, RuntimeError) as error:  # diffusers' NotImplementedError too
        raise UserError(f"the scheduler of {ref} is no DDPM noise schedule: {one_line(error)}") from error
    if told.prediction_type == "epsilon" and kept.min() == 0:
        raise UserError(
            f"{ref} cannot be used: its noise schedule ends with nothing of the image (zero terminal SNR), and from"
            " there prediction_type epsilon tells nothing of it; v_prediction or sample would"
        )
    return scheduler
