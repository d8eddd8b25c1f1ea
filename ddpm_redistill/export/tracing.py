"""A network, teacher or student -> ``torch.export``'s graph of it, which every format is written from."""

import copy
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from ..errors import UserError
from ..pipelines.red_block import fold_batch_norms
from ..sources.image_files import one_line

EXAMPLES = 2
"""Images that a graph of any batch size is traced with: torch takes a size of 1 for a constant."""


class Denoiser(nn.Module):
    """What is exported of a network without classes: sample (B, C, H, W), timestep int64 (B,) -> the network's
    prediction, (B, C, H, W)."""

    def __init__(self, unet: UNet2DModel):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        prediction: Tensor = self.unet(sample, timestep, return_dict=False)[0]
        return prediction


class ClassDenoiser(nn.Module):
    """What is exported of a class-conditional network: the same with class_labels int64 (B,) as a third input."""

    def __init__(self, unet: UNet2DModel):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        prediction: Tensor = self.unet(sample, timestep, class_labels, return_dict=False)[0]
        return prediction


def trace(unet: UNet2DModel, batch_size: int | None = None) -> ExportedProgram:
    """The graph of a network in eval mode, its BatchNorms folded into the convolutions; ``unet`` stays as it is.

    Args:
        batch_size: B of the graph; None for any.

    Raises:
        UserError: the network branches on something that a graph cannot have.
    """
    denoiser = Denoiser if unet.class_embedding is None else ClassDenoiser
    network = denoiser(copy.deepcopy(unet)).requires_grad_(False).eval()
    fold_batch_norms(network)
    for module in network.modules():
        if type(module) is Upsample2D and module.norm is None and not module.use_conv_transpose:
            # diffusers' own forward branches at 64 images, for a memory format: a graph would hold up to there alone
            module.forward = partial(upsampled, module)
    count = EXAMPLES if batch_size is None else batch_size
    whole = torch.zeros(count, dtype=torch.int64)
    inputs = {"sample": torch.zeros(count, unet.config.in_channels, *image_shape(unet)), "timestep": whole}
    if unet.class_embedding is not None:
        inputs["class_labels"] = whole.clone()
    return graph_of(network, inputs, batch_size)


def graph_of(network: nn.Module, inputs: dict[str, Tensor], batch_size: int | None) -> ExportedProgram:
    """The graph of a network in eval mode, without gradients.

    Args:
        inputs: by the names that its forward has, the batch first.

    Raises:
        UserError: as ``trace``.
    """
    shapes = {name: {0: Dim("batch", min=1)} for name in inputs} if batch_size is None else None
    try:
        with torch.no_grad():
            program = torch.export.export(network, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch's tracer raises almost any type
        hint = "" if batch_size else "; with --batch_size N it may go"
        raise UserError(f"this network cannot be traced: {one_line(error)}{hint}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, a fifth of a small file
    return program


def upsampled(layer: Upsample2D, x: Tensor, output_size: Any = None) -> Tensor:
    """``Upsample2D.forward``: (B, C, H, W) -> (B, C, 2H, 2W), or as it was where the layer has lost its stride."""
    if layer.interpolate:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    conv = getattr(layer, "conv", None)
    return x if conv is None else conv(x)


def image_shape(unet: UNet2DModel) -> tuple[int, int]:
    """(height, width) in pixels."""
    size = unet.config.sample_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])
