"""A student as a list of edits of its teacher's network: each is a small record that can say itself, apply itself and
be JSON. Imports torch alone: this file travels inside student folders.

Edits apply to a freshly initialised network and in their order, which decides what random values each new layer gets.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

from torch import nn

from .cheap import CheapConv2d, parse_kind
from .red_block import RedAround, REDBlock, TokensAround
from .strides import set_stride


@dataclass(frozen=True, kw_only=True)
class Stem:
    """The convolutions that read the image, as a rule one, take ``stride``. The first of ``layers`` is made anew, with
    a kernel of at least stride + 1, so that every pixel is read (3x3 at stride 2, as in the paper)."""

    kind: ClassVar[str] = "stem"
    layers: tuple[str, ...]
    stride: int

    def __str__(self) -> str:
        return f"{' and '.join(self.layers)} take{'s' if len(self.layers) == 1 else ''} stride {self.stride}"

    def apply(self, network: nn.Module) -> None:
        """Put a new convolution in the place of the first one. Raises ValueError of a layer that has no stride."""
        path, *others = self.layers
        for other in others:
            set_stride(network.get_submodule(other), self.stride)
        before = network.get_submodule(path)
        kernel = max(before.kernel_size[0], self.stride + 1)
        stem = nn.Conv2d(
            before.in_channels,
            before.out_channels,
            kernel,
            stride=self.stride,
            padding=kernel // 2,
            bias=before.bias is not None,
        )
        network.set_submodule(path, stem)


@dataclass(frozen=True, kw_only=True)
class Stride:
    """Layers that change the resolution together take the stride 1: the branches of a block, or a down-sampler and the
    up-sampler that mirrors it. Their weights keep their shape."""

    kind: ClassVar[str] = "stride"
    layers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' and '.join(self.layers)} lose{'s' if len(self.layers) == 1 else ''} the stride"

    def apply(self, network: nn.Module) -> None:
        """Raises ValueError of a layer that has no stride."""
        for path in self.layers:
            set_stride(network.get_submodule(path), 1)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last convolution makes factor * factor values for each position, which are laid out as pixels: its output is
    ``factor`` times as large a side."""

    kind: ClassVar[str] = "head"
    path: str
    factor: int

    def __str__(self) -> str:
        return f"{self.path} makes {self.factor}x{self.factor} pixels of each position"

    def apply(self, network: nn.Module) -> None:
        """Put a convolution and a ``PixelShuffle`` in the place of the last convolution."""
        before = network.get_submodule(self.path)
        head = nn.Conv2d(
            before.in_channels,
            before.out_channels * self.factor**2,
            before.kernel_size,
            padding=before.padding,
            bias=before.bias is not None,
        )
        network.set_submodule(self.path, nn.Sequential(head, nn.PixelShuffle(self.factor)))


@dataclass(frozen=True, kw_only=True)
class Width:
    """Level ``level``, the finest is 0, has ``factor`` times the teacher's channels."""

    kind: ClassVar[str] = "width"
    level: int
    factor: int

    def __str__(self) -> str:
        return f"level {self.level + 1} has {self.factor} times the teacher's channels"

    def apply(self, network: nn.Module) -> None:
        """Nothing: widths are arguments of the network's class, and it was built with them."""


@dataclass(frozen=True, kw_only=True)
class Cheap:
    """A 3x3 convolution of a residual block is a cheap one, ``convolution`` by its name (``cheap.parse_kind``), with a
    ``norm`` inside. Stride and padding are those that it has by then."""

    kind: ClassVar[str] = "cheap"
    path: str
    convolution: str
    norm: Literal["batch", "group"]

    def __str__(self) -> str:
        return f"{self.path} is a {self.convolution} ({self.norm} norm)"

    def apply(self, network: nn.Module) -> None:
        """Put the block in the place of the convolution. Raises ValueError of a layer that is no such convolution, or
        whose channels do not divide."""
        before = network.get_submodule(self.path)
        if not isinstance(before, nn.Conv2d) or before.kernel_size != (3, 3) or before.groups > 1:
            raise ValueError(f"{self.path} is no full 3x3 convolution, which a cheap one could stand for")
        block = CheapConv2d(
            before.in_channels,
            before.out_channels,
            parse_kind(self.convolution),
            stride=before.stride[0],
            padding=before.padding[0],
            bias=before.bias is not None,
            norm=self.norm,
        )
        network.set_submodule(self.path, block)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens that leave a block of a transformer are laid out as a map of ``side`` by ``side``, which can be read
    and on which a RED block can stand; the first ``prefix`` of them (class, registers) are none of it."""

    kind: ClassVar[str] = "tokens"
    path: str
    prefix: int
    side: int

    def __str__(self) -> str:
        behind = f" but the first {self.prefix}" if self.prefix else ""
        return f"the tokens that leave {self.path}{behind} are laid out as a map of {self.side}x{self.side}"

    def apply(self, network: nn.Module) -> None:
        """Put the block into a ``TokensAround``."""
        network.set_submodule(self.path, TokensAround(network.get_submodule(self.path), self.prefix, self.side))


@dataclass(frozen=True, kw_only=True)
class Red:
    """A RED block on one side of a layer, and the map of the teacher that it is matched to.

    ``side`` is red_in or red_out; ``teacher_side`` input or output of ``teacher_layer``; ``resolution`` pixels a side,
    of both maps. The teacher's part is kept so that a folder says what its student was aligned with.
    """

    kind: ClassVar[str] = "red"
    path: str
    side: Literal["red_in", "red_out"]
    channels: int
    resolution: int
    norm: Literal["batch", "group"]
    start: Literal["paper", "identity"]
    teacher_layer: str
    teacher_side: Literal["input", "output"]
    teacher_channels: int

    @property
    def name(self) -> str:
        """The block's module path in the student."""
        return f"{self.path}.{self.side}"

    def __str__(self) -> str:
        return (
            f"{self.name}  {self.resolution} px {self.channels} ch  <->  {self.teacher_side} of {self.teacher_layer}"
            f" ({self.teacher_channels} ch)"
        )

    def apply(self, network: nn.Module) -> None:
        """Put the layer into a ``RedAround`` if it is in none yet, and the block on its side."""
        layer = network.get_submodule(self.path)
        if not isinstance(layer, RedAround):
            layer = RedAround(layer)
            network.set_submodule(self.path, layer)
        setattr(layer, self.side, REDBlock(self.channels, self.norm, self.start))


Edit = Stem | Stride | Head | Width | Cheap | Tokens | Red
EDITS: dict[str, type[Edit]] = {edit.kind: edit for edit in (Stem, Stride, Head, Width, Cheap, Tokens, Red)}


def edit_to_dict(edit: Edit) -> dict[str, Any]:
    """As JSON has it: ``edit``, its kind, and its fields."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(edit).items()}
    return {"edit": edit.kind, **values}


def edit_from_dict(given: Any) -> Edit:
    """The inverse of ``edit_to_dict``. Raises ValueError naming what is missing, unknown or none of its values."""
    if not isinstance(given, dict) or given.get("edit") not in EDITS:
        raise ValueError(f"{str(given)[:80]} is no edit: its kind must be one of {', '.join(EDITS)}")
    kind = EDITS[given["edit"]]
    values = {name: value for name, value in given.items() if name != "edit"}
    known = {field.name: field.type for field in fields(kind)}
    for wrong, words in ((known.keys() - values, "lacks"), (values.keys() - known, "has an unknown")):
        if wrong:
            raise ValueError(f"an edit of kind {given['edit']} {words} {sorted(wrong)[0]}")
    for name, hint in known.items():
        if get_origin(hint) is tuple and isinstance(values[name], list):
            values[name] = tuple(values[name])
        if not _is_of(values[name], hint):
            raise ValueError(f"in an edit of kind {given['edit']} {name} is {values[name]!r}")
    return kind(**values)


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and bool(value) and all(isinstance(item, str) for item in value)
    if hint is int:
        return type(value) is int and 0 <= value < 2**31
    return isinstance(value, hint)
