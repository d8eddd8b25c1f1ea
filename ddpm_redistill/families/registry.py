"""The families of networks, and what a family's file has to say: the one place that knows them all."""

from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import nn

from ..core.resampling import Resampling
from ..errors import UserError
from . import unet2d


class Family(Protocol):
    """The functions of a family's file. A ``config`` is a network's, as its folder has it in JSON."""

    def recognises(self, config: dict[str, Any]) -> bool:
        """Is a config of this family?"""

    def is_student(self, config: dict[str, Any]) -> bool:
        """Has it a plan, ``student_plan``?"""

    def base_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Of a student the config without its edits, of the teacher that it descends from; else ``config`` itself."""

    def network_on_meta(self, config: dict[str, Any]) -> nn.Module:
        """The network in eval mode, without memory for its weights. Raises UserError where it is none of the family."""

    def resampling_table(self, config: dict[str, Any]) -> list[Resampling]:
        """The layers that change the resolution, in the order of the forward. Raises UserError with the reason where
        the network has no student here."""

    def widened(self, config: dict[str, Any], widen: tuple[int, ...]) -> dict[str, Any]:
        """The config with ``widen[i]`` times the channels in level i. Raises UserError where that cannot be."""

    def build_student(self, config: dict[str, Any], sample_size: int, plan: dict[str, Any]) -> nn.Module:
        """The student of a plan, freshly initialised on the current default device, from its teacher's config."""

    def widened_state(
        self, narrow: nn.Module, wide: nn.Module, widen: tuple[int, ...], generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Weights of a widened student that computes what the unwidened one does, as far as that can be."""

    def with_input(
        self, network: nn.Module, batch_size: int, image_size: int | None, dtype: torch.dtype
    ) -> tuple[nn.Module, tuple[Any, ...]]:
        """The network in ``dtype``, and the arguments of its forward on the meta device. Raises UserError for a size
        that it cannot take."""


FAMILIES: dict[str, ModuleType] = {"unet2d": unet2d}
"""By the name that a plan records."""


def family_of(config: dict[str, Any]) -> tuple[str, Family]:
    """The family of a network, by its name and its functions. Raises UserError where none knows it."""
    for name, module in FAMILIES.items():
        family = cast(Family, module)
        if family.recognises(config):
            return name, family
    raise UserError(f"no family of networks knows this config: known are {', '.join(FAMILIES)}")
