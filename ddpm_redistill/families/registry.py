"""The families of networks, and what a family's file has to say: the one place that knows them all."""

from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import nn

from ..core.resampling import BlockConv, LevelEnd, Resampling, TokenMap
from ..errors import UserError
from . import classifier, unet2d, vit


class Found(Protocol):
    """A network that was looked up, without its weights."""

    ref: str
    config: dict[str, Any]
    pixels_per_latent: int
    autoencoder: Any

    def say(self) -> None:
        """Log what of its files was passed over."""


class Family(Protocol):
    """What a family's file has (docs/families.md). A ``config`` is a network's, as its folder has it in JSON."""

    TASK: str
    """What its networks learn: denoise or classify."""
    WIDENS: bool
    """Can levels of a student have more channels than its teacher's?"""
    CHEAP_NORM: str
    """Inside of cheap convolutions, where a person asks for none: batch or group."""

    def recognises(self, config: dict[str, Any]) -> bool:
        """Is a config of this family?"""

    def refers(self, ref: str) -> bool:
        """Is what a person wrote, a folder, a hub id or a name, a network of this family? Nothing is loaded."""

    def find(self, ref: str) -> Found:
        """What it is, without its weights. Raises UserError."""

    def is_student(self, config: dict[str, Any]) -> bool:
        """Has it a plan, ``student_plan``?"""

    def base_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Of a student the config without its edits, of the teacher that it descends from; else ``config`` itself."""

    def size_of(self, config: dict[str, Any]) -> int | list[int] | None:
        """Pixels (or latents) a side of what the network reads, [height, width] of a rectangle; None where its config
        does not say."""

    def sized(self, config: dict[str, Any], image_size: int) -> dict[str, Any]:
        """The config with another size of images."""

    def default_student(self) -> dict[str, Any]:
        """What the default recipe says of ``StudentConfig``; a setting that is not in it is of no student of the
        family."""

    def network_on_meta(self, config: dict[str, Any]) -> nn.Module:
        """The network in eval mode, without memory for its weights. Raises UserError where it is none of the family."""

    def resampling_table(self, config: dict[str, Any]) -> list[Resampling]:
        """The layers that change the resolution, in the order of the forward. Raises UserError with the reason where
        the network has no student here."""

    def cheap_layers(self, config: dict[str, Any]) -> list[BlockConv]:
        """The convolutions of its residual blocks that cheap ones can stand for, in the order of the forward, before
        all edits but widths; empty where none are known."""

    def level_ends(self, config: dict[str, Any]) -> list[LevelEnd]:
        """The maps that leave the residual blocks of each level, in the order of the forward; of a student its own.
        Empty where none are known."""

    def own_student(
        self, architecture: str, arguments: dict[str, Any], teacher_config: dict[str, Any]
    ) -> tuple[dict[str, Any], list[TokenMap]]:
        """A student that is a network of its own: its config, for its teacher's images and classes, and the maps that
        can be aligned. Raises UserError where the family has no such students."""

    def widened(self, config: dict[str, Any], widen: tuple[int, ...]) -> dict[str, Any]:
        """The config with ``widen[i]`` times the channels in level i; only of a family that widens."""

    def build_student(self, config: dict[str, Any], sample_size: int, plan: dict[str, Any]) -> nn.Module:
        """The student of a plan, freshly initialised on the current default device, from its teacher's config."""

    def widened_state(
        self, narrow: nn.Module, wide: nn.Module, widen: tuple[int, ...], generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Weights of a widened student that computes what the unwidened one does, as far as that can be; only of a
        family that widens."""

    def with_input(
        self, network: nn.Module, batch_size: int, image_size: int | None, dtype: torch.dtype
    ) -> tuple[nn.Module, tuple[Any, ...]]:
        """The network in ``dtype``, and the arguments of its forward on the meta device. Raises UserError for a size
        that it cannot take."""

    def paper_peaks(self, network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
        """Entries of a memory profile that the family counts by a rule of its own, in bytes."""


FAMILIES: dict[str, ModuleType] = {"vit": vit, "classifier": classifier, "unet2d": unet2d}
"""By the name that a plan records; the first that knows a network has it. ``unet2d`` takes what no other does."""


def family_of(config: dict[str, Any]) -> tuple[str, Family]:
    """The family of a network, by its name and its functions. Raises UserError where none knows it."""
    for name, family in _families():
        if family.recognises(config):
            return name, family
    raise UserError(f"no family of networks knows this config: known are {', '.join(FAMILIES)}")


def family_named(name: str) -> Family:
    """Raises KeyError."""
    return cast(Family, FAMILIES[name])


def find_family(ref: str) -> tuple[str, Family]:
    """The family of a network by what a person wrote: its name, and its functions."""
    return next((name, family) for name, family in _families() if family.refers(ref))


def find_network(ref: str) -> tuple[Family, Found]:
    """A network by what a person wrote, without its weights. Raises UserError where there is none."""
    family = find_family(ref)[1]
    return family, family.find(ref)


def _families() -> list[tuple[str, Family]]:
    return [(name, cast(Family, module)) for name, module in FAMILIES.items()]
