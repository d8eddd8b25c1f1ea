"""The layers of a network that change its resolution, as rows of a table; and what a network of tokens has instead."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """One row of the resampling table: a layer that changes resolution, measured on an example input.

    Args:
        path: the layer, or the block with the strided layers inside.
        reads: what stands behind the RED block in front of it, of a student that has one; else ``path``.
        kind: stem, pool (without weights, straight behind the stem), down, up or head. For the head of a UNet the layer
            is the norm that opens it: that is where its RED block stands.
        stride: input resolution over output resolution, or the reverse for an up-sampler.
        channels, resolution: (input, output); pixels a side.
        layers: the modules that an edit of the row changes, by path: those whose strides go together, the largest
            kernel first; of the head the last convolution.
    """

    path: str
    reads: str
    kind: str
    stride: int
    channels: tuple[int, int]
    resolution: tuple[int, int]
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BlockConv:
    """A full 3x3 convolution of a residual block, which a cheap one can stand for.

    Args:
        level: of the network, the first is 0.
        path: of the convolution.
        channels: (input, output).
    """

    level: int
    path: str
    channels: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LevelEnd:
    """What leaves the residual blocks of one level.

    Args:
        path: of the last layer of the level.
        part: down or up, of a UNet; of a classifier down.
        channels, resolution: of its map; pixels a side.
    """

    path: str
    part: str
    channels: int
    resolution: int


@dataclass(frozen=True, kw_only=True)
class TokenMap:
    """What leaves a block of a network that keeps one resolution, a transformer's: tokens that are a map.

    Args:
        path: the block.
        prefix: tokens in front that are none of the map: class, registers.
        channels: of a token.
        resolution: of the map, tokens a side.
    """

    path: str
    prefix: int
    channels: int
    resolution: int
