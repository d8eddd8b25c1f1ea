"""DDIM over any choice of timesteps: diffusers' own step, given the timestep that really comes next."""

import math
from typing import Any

import torch
from diffusers import DDIMScheduler

QUAD_REACH = 0.8
"""Quad spacing ends at this share of the schedule, as in the code of DDIM."""


class SpacedDDIMScheduler(DDIMScheduler):
    """``DDIMScheduler`` that steps to the next of its own timesteps, with one more ``timestep_spacing``, "quad".

    diffusers takes ``t - T // K`` for the timestep after t (its issues 11347 and 12633), which is right for
    "leading" and, where K divides T, for "trailing"; there the numbers are the same. Here the stock step runs on a
    schedule of the K chosen timesteps alone, in which the one after i is i - 1 (respacing: Nichol & Dhariwal 2021,
    arXiv 2102.09672, section 4).

    A folder should name the stock class: save ``to_stock()``, as ``RedDDPMPipeline.save_pretrained`` does.
    """

    _respaced: DDIMScheduler | None = None

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose ``timesteps``: int64 (num_inference_steps,), falling.

        Raises:
            ValueError: more steps than the schedule has timesteps, or an unknown spacing.
        """
        limit = self.config.num_train_timesteps
        if self.config.timestep_spacing == "quad" and num_inference_steps <= limit:
            self.num_inference_steps = num_inference_steps
            self.timesteps = torch.tensor(quad_timesteps(limit, num_inference_steps)[::-1], device=device)
        else:
            super().set_timesteps(num_inference_steps, device)
            # rounding gives diffusers one timestep too many, -1, for "trailing" and 61 steps, and some other counts
            self.timesteps = self.timesteps[:num_inference_steps]
        self._respaced = DDIMScheduler.from_config(self.config, num_train_timesteps=num_inference_steps)
        self._respaced.num_inference_steps = num_inference_steps
        self._respaced.alphas_cumprod = self.alphas_cumprod[self.timesteps.flip(0).to(self.alphas_cumprod.device)]
        self._respaced.final_alpha_cumprod = self.final_alpha_cumprod

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        **options: Any,
    ) -> Any:
        """``DDIMScheduler.step``, with its arguments; tensors (B, C, H, W), ``timestep`` one of ``timesteps``.

        Raises:
            ValueError: ``timestep`` is not one of ``timesteps``, or none were set.
        """
        found = (self.timesteps == timestep).nonzero().flatten().tolist()
        if self._respaced is None or not found:
            raise ValueError(f"{timestep} is not one of the timesteps: call set_timesteps, and step through them")
        index = len(self.timesteps) - 1 - found[0]
        return self._respaced.step(model_output, index, sample, eta, **options)

    def to_stock(self) -> DDIMScheduler:
        """The stock scheduler of the same noise schedule; quad, which that has not, becomes "trailing"."""
        spacing = self.config.timestep_spacing
        return DDIMScheduler.from_config(self.config, timestep_spacing="trailing" if spacing == "quad" else spacing)


def quad_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Timesteps that rise with the square of their position: dense where there is little noise.

    ``linspace(0, sqrt(0.8 T), K) ** 2``, truncated, as in the code of DDIM (Song et al. 2021, arXiv 2010.02502, for
    CIFAR-10). From 30 steps on (T = 1000) the first of these repeat, which would spend network evaluations on steps
    that change nothing: each timestep is at least its position, so all differ.
    """
    last = math.sqrt(QUAD_REACH * num_train_timesteps)
    step = last / max(1, num_inference_steps - 1)
    roots = [i * step for i in range(num_inference_steps - 1)] + [last if num_inference_steps > 1 else 0.0]
    return [max(i, int(root * root)) for i, root in enumerate(roots)]
