"""The resampling table: the layers of a network that change resolution, one row each. Imports nothing but torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """One row of the resampling table: a layer that changes resolution, measured on an example input.

    ``kind`` is stem, pool, down, up or head; a pool is a pooling without weights straight behind the stem, which loses
    its stride first. Channels and resolutions (pixels a side) are (input, output). For a UNet's head the layer is the
    norm that opens it: that is where its RED block stands. ``path`` is a layer, or the block that the stride is inside
    of ("layer2.0"). Of a student ``path`` is a layer with the RED blocks around it, and ``reads`` what stands behind
    the first of them; elsewhere both are the same. ``layers`` are the modules whose stride an edit sets.
    """

    path: str
    reads: str
    kind: str
    stride: int
    channels: tuple[int, int]
    resolution: tuple[int, int]
    layers: tuple[str, ...]
