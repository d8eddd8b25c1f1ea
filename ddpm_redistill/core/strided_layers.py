"""The resampling table of a convolutional network, found by running it: no class and no name of a layer is known.

A convolution or a pooling with a stride above 1 is one leaf; leaves that go from one resolution to the same next one
(a block's main path and its shortcut) are one row. What is no single chain of such rows from the image down is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .resampling import Resampling

AROUND = ("red_in", "layer", "red_out")
"""Children of the module that puts RED blocks around a layer."""


@dataclass(kw_only=True)
class _Call:
    """A module's only call: the map that it reads and the one that it makes, (B, C, H, W) each, and its place among
    the calls as they end."""

    reads: torch.Tensor
    makes: torch.Tensor
    place: int

    @property
    def resolution(self) -> tuple[int, int]:
        return self.reads.shape[-1], self.makes.shape[-1]


def strided_rows(network: nn.Module, example: torch.Tensor) -> list[Resampling]:
    """The stem, then each layer or block that strides, in the order of the forward.

    Args:
        network: in eval mode; the meta device is enough.
        example: (1, C, S, S), on the network's device.

    Raises:
        ValueError: with the reason, the network is no chain of strided layers on images of S pixels.
    """
    calls = _calls(network, example)
    modules = dict(network.named_modules())
    convs = [path for path in calls if isinstance(modules[path], nn.Conv2d)]
    stem = [path for path in convs if calls[path].reads is example]
    if not stem:
        raise ValueError("no convolution of it reads the image itself")
    groups: dict[tuple[int, int], list[str]] = {}
    for path, call in calls.items():
        stride = _stride(path, modules[path])
        if stride == 1:
            continue
        before, after = call.resolution
        if before != after * stride:
            cause = "its padding loses some" if before % stride == 0 else "choose an image size that its strides divide"
            cause = "maps grow again" if after > before else cause
            what = f"{path} of stride {stride} makes {after} pixels a side of {before}"
            raise ValueError(f"on images of {example.shape[-1]} pixels {what}: {cause}")
        groups.setdefault(call.resolution, []).append(path)
    steps = {calls[path].resolution for path in stem}
    if len(steps) > 1 or sorted(groups.pop(min(steps), stem)) != sorted(stem):
        raise ValueError(f"its stem is not one strided convolution: beside {stem[0]} other layers read the image")
    rows = [_row(network, calls, "stem", stem, _common(stem))]
    for _, group in sorted(groups.items(), reverse=True):
        path = _common(group) if len(group) > 1 else _block_of(modules, calls, group[0])
        here = rows[-1].resolution[1]
        if path not in calls or calls[path].resolution != calls[group[0]].resolution:
            raise ValueError(f"{' and '.join(group[:2])} stride side by side, and no block holds just them")
        if calls[path].resolution[0] != here:
            raise ValueError(f"its layers make no chain: {path} reads {calls[path].resolution[0]} pixels, not {here}")
        pool = len(rows) == 1 and path == group[0] and _behind_stem(modules[path], path, calls, convs)
        rows.append(_row(network, calls, "pool" if pool else "down", group, path))
    return rows


def _calls(network: nn.Module, example: torch.Tensor) -> dict[str, _Call]:
    """By path, in the order of the calls' ends; without modules that run twice or have no map at either side."""
    calls: dict[str, _Call] = {}
    twice: set[str] = set()
    handles = []
    for path, module in network.named_modules():

        def keep(_: nn.Module, args: tuple, output: object, path: str = path) -> None:
            maps = [value for value in (args[0] if args else None, output) if isinstance(value, torch.Tensor)]
            if path in calls:
                twice.add(path)
            if [value.dim() for value in maps] == [4, 4]:
                calls[path] = _Call(reads=maps[0], makes=maps[1], place=len(calls))

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    again = next((path for path in calls if path in twice and _stride(path, network.get_submodule(path)) > 1), None)
    if again is not None:
        raise ValueError(f"{again} strides, and runs more than once")
    return {path: call for path, call in calls.items() if path not in twice}


def _stride(path: str, module: nn.Module) -> int:
    """Of a leaf; 1 of what has none."""
    stride = getattr(module, "stride", 1)
    if next(module.children(), None) is not None or not isinstance(stride, int | tuple):
        return 1
    sides = {stride} if isinstance(stride, int) else set(stride)
    if len(sides) != 1:
        raise ValueError(f"{path} has stride {stride}, and strides of two sizes are not planned")
    return int(sides.pop())


def _row(network: nn.Module, calls: dict[str, _Call], kind: str, layers: list[str], path: str) -> Resampling:
    parent = path.rpartition(".")[0]
    reads = path
    if parent and _is_around(network.get_submodule(parent)):
        path = parent
        if isinstance(network.get_submodule(f"{path}.red_in"), nn.Identity):
            reads = path
    before, after = calls[reads].reads.shape, calls[path].makes.shape
    return Resampling(
        path=path,
        reads=reads,
        kind=kind,
        stride=before[-1] // after[-1],
        channels=(before[1], after[1]),
        resolution=(before[-1], after[-1]),
        layers=tuple(sorted(layers, key=lambda layer: -_kernel(network.get_submodule(layer)))),
    )


def _kernel(layer: nn.Module) -> int:
    """Pixels of its longer side; 0 of what has none."""
    size = getattr(layer, "kernel_size", 0)
    return max(size) if isinstance(size, tuple) else int(size)


def _block_of(modules: dict[str, nn.Module], calls: dict[str, _Call], leaf: str) -> str:
    """The block that a strided leaf without a shortcut is in: the item of a sequence that it makes up or is inside of,
    as long as the block goes from the same resolution to the same next one."""

    def same(path: str) -> bool:
        return path != "" and path in calls and calls[path].resolution == calls[leaf].resolution

    path, parent = leaf, leaf.rpartition(".")[0]
    while same(parent) and not isinstance(modules[parent], nn.Sequential) and not _is_around(modules[parent]):
        others = [child for name, child in modules[parent].named_children() if f"{parent}.{name}" != path]
        if any(isinstance(child, nn.Sequential) for child in others):
            break  # a stage, with its blocks in a sequence beside the step down
        path, parent = parent, parent.rpartition(".")[0]
    alone = path == leaf and same(parent) and isinstance(modules[parent], nn.Sequential)
    if alone and not any(other != leaf for other in _spatial(modules[parent], parent)):
        path = parent  # a norm and a strided convolution, a transition: one step
    return path


def _spatial(module: nn.Module, path: str) -> Iterator[str]:
    """Convolutions in it that read more than one pixel for each that they make."""
    for name, child in module.named_modules(prefix=path):
        if isinstance(child, nn.Conv2d) and max(child.kernel_size) > 1:
            yield name


def _behind_stem(pool: nn.Module, path: str, calls: dict[str, _Call], convs: list[str]) -> bool:
    """Is it a pooling without weights, behind no convolutions but those of one stem?"""
    if any(True for _ in pool.parameters()):
        return False
    stem = _common([conv for conv in convs if calls[conv].place < calls[path].place])
    return stem != "" and not path.startswith(f"{stem}.")


def _is_around(module: nn.Module) -> bool:
    return set(AROUND) == {name for name, _ in module.named_children()}


def _common(paths: list[str]) -> str:
    """The smallest module that holds them all; of one path, that."""
    parts = [path.split(".") for path in paths]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
