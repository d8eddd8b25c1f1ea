"""Families of classifiers of other packages (docs/families.md): an installed package names each, and the module that
has it, in the entry point group ``ddpm_redistill.families``."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from torch import nn

from ..errors import UserError

GROUP = "ddpm_redistill.families"
BUILT_IN = ("timm:", "wrn:")


class OwnNetworks(Protocol):
    """What the module has. A network of it is called FAMILY:NAME."""

    def defaults(self, name: str) -> dict[str, int]:
        """``image_size``, ``num_classes`` and ``in_channels`` where a person asks for none. Raises ValueError of a name
        that is none."""

    def make(self, name: str, num_classes: int, in_channels: int, **arguments: Any) -> nn.Module:
        """The network, of random weights, (B, in_channels, S, S) -> logits (B, num_classes)."""


@cache
def _families() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def is_own(ref: str) -> bool:
    """Is it FAMILY:NAME of an installed package? Nothing of it is imported."""
    family, colon, name = ref.partition(":")
    return bool(colon and name) and not ref.startswith(BUILT_IN) and family in _families()


def own_networks(ref: str) -> OwnNetworks:
    """The module of a family. Raises UserError where it is not installed, or cannot be imported."""
    family = ref.partition(":")[0]
    if family not in _families():
        known = ", ".join(["timm", "wrn", *_families()])
        raise UserError(f"{ref} is of the family {family}, and no package that has it is installed: known are {known}")
    try:
        return cast(OwnNetworks, _families()[family].load())
    except (ImportError, AttributeError) as error:
        raise UserError(f"the family {family} cannot be imported: {error}") from error
