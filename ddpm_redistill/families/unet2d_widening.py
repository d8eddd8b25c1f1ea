"""Weights of a wider student from those of an unwidened one: the same function, as far as its norms allow.

Net2WiderNet of Chen et al. 2016, "Net2Net: Accelerating Learning via Knowledge Transfer", arXiv 1511.05641, section
3.2: channels are replicated, and whatever reads a channel reads all its replicas, its weight divided among them.

- Replicas stand side by side, so that each group of a GroupNorm keeps its channels and with them its statistics.
- Attention with one head over all channels: the head is b times as wide, its q.k b times as large and divided by
  sqrt(b) more, so query and key are scaled by b^(-1/4) each. With heads of a fixed size, whole heads are replicated.
- The weight is divided unevenly, by other shares in every row: equal replicas with equal shares would have equal
  gradients, and stay one channel for ever.

Exact (to rounding, in eval mode) where all levels are widened alike. Between two levels of different factors two
GroupNorms, the first of the shallower level's first up-resnet and of the deeper level's last, see a concatenation whose
parts are unequally wide: with as many groups the borders move, the groups average other channels, and since the
statistics depend on the image no constant scale of the weights makes up for it.
"""

from typing import cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from ..errors import UserError
from ..pipelines.modeling_red_unet import RedUNet2DModel

SPREAD = 0.5
"""Of the shares that a weight is divided into: 1/k (1 + SPREAD z), z standard normal with its mean over the k replicas
taken off, drawn for each row and channel."""


def widened_state(
    narrow: RedUNet2DModel, wide: RedUNet2DModel, widen: tuple[int, ...], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The state dict of ``wide`` that computes what ``narrow`` computes, exactly or nearly (see above).

    Args:
        narrow: the student with the teacher's widths. It is not changed.
        wide: the same student with ``widen[i]`` times the channels in level i.
        generator: of the uneven shares.

    Raises:
        UserError: attention heads of the wide network are no replicas of the narrow one's.
    """
    widths = narrow.config.block_out_channels
    last = len(widths) - 1
    levels = [torch.arange(width).repeat_interleave(factor) for width, factor in zip(widths, widen, strict=True)]
    widening = _Widening(narrow, wide, generator)

    widening.layer("conv_in", None, levels[0])
    for name in ("time_proj", "time_embedding", *(["class_embedding"] if narrow.class_embedding is not None else [])):
        widening.layer(name, None, None)
    for i, block in enumerate(narrow.down_blocks):
        path, own = f"down_blocks.{i}", levels[i]
        for j in range(len(block.resnets)):
            widening.layer(f"{path}.resnets.{j}", levels[max(i - 1, 0)] if j == 0 else own, own)
        widening.members(path, own)
    if narrow.mid_block is not None:
        for j in range(len(narrow.mid_block.resnets)):
            widening.layer(f"mid_block.resnets.{j}", levels[-1], levels[-1])
        widening.members("mid_block", levels[-1])
    for k, block in enumerate(narrow.up_blocks):
        i = last - k
        path, own = f"up_blocks.{k}", levels[i]
        for j in range(len(block.resnets)):
            hidden, channels = (levels[min(i + 1, last)], widths[min(i + 1, last)]) if j == 0 else (own, widths[i])
            skip = levels[max(i - 1, 0)] if j == len(block.resnets) - 1 else own
            widening.layer(f"{path}.resnets.{j}", torch.cat([hidden, skip + channels]), own)
        widening.members(path, own)
    widening.layer("conv_norm_out", levels[0], levels[0])
    widening.layer("conv_out", levels[0], None)
    return widening.state


class _Widening:
    """Fills ``state`` layer by layer. A map (C_wide,) has for each channel the narrow one that it replicates; None:
    these are no channels of a level, and stay."""

    def __init__(self, narrow: RedUNet2DModel, wide: RedUNet2DModel, generator: torch.Generator):
        self.narrow, self.wide, self.generator = narrow, wide, generator
        self.state: dict[str, torch.Tensor] = {}

    def members(self, path: str, channels: torch.Tensor) -> None:
        """Attentions and resampling layers of a block: as many channels in as out."""
        block = self.narrow.get_submodule(path)
        for name in ("attentions", "downsamplers", "upsamplers"):
            for j, member in enumerate(getattr(block, name, None) or ()):
                if member is not None:  # a middle without attention
                    self.layer(f"{path}.{name}.{j}", channels, channels)

    def layer(self, path: str, inputs: torch.Tensor | None, outputs: torch.Tensor | None) -> None:
        """One layer and all within it, whatever stands around it."""
        layer = self.narrow.get_submodule(path)
        if isinstance(layer, ResnetBlock2D):
            self._resnet(path, layer, cast(torch.Tensor, inputs), cast(torch.Tensor, outputs))
        elif isinstance(layer, Attention):
            self._attention(path, layer, cast(torch.Tensor, inputs))
        else:
            for name, value in layer.named_parameters(recurse=False):
                self.state[f"{path}.{name}"] = self._replicated(value.detach(), inputs, outputs)
            for name, value in layer.named_buffers(recurse=False):
                self.state[f"{path}.{name}"] = self._replicated(value, inputs, outputs)
            for name, _ in layer.named_children():  # of a sampler, the wrapper around a layer, a RED block
                around = {"red_in": (inputs, inputs), "red_out": (outputs, outputs)}
                self.layer(f"{path}.{name}", *around.get(name, (inputs, outputs)))

    def _resnet(self, path: str, resnet: ResnetBlock2D, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        self.layer(f"{path}.norm1", inputs, inputs)
        self.layer(f"{path}.conv1", inputs, outputs)
        self.layer(f"{path}.norm2", outputs, outputs)
        self.layer(f"{path}.conv2", outputs, outputs)
        if resnet.time_emb_proj is not None:
            scale_and_shift = resnet.time_embedding_norm == "scale_shift"
            rows = torch.cat([outputs, outputs + resnet.out_channels]) if scale_and_shift else outputs
            self.layer(f"{path}.time_emb_proj", None, rows)
        if resnet.conv_shortcut is not None:
            self.layer(f"{path}.conv_shortcut", inputs, outputs)
        elif self.wide.get_submodule(path).conv_shortcut is not None:  # as many channels before, not any more
            weight = torch.eye(resnet.out_channels)[:, :, None, None]
            self.state[f"{path}.conv_shortcut.weight"] = self._replicated(weight, inputs, outputs)
            self.state[f"{path}.conv_shortcut.bias"] = torch.zeros(len(outputs))

    def _attention(self, path: str, attention: Attention, channels: torch.Tensor) -> None:
        wide = self.wide.get_submodule(path)
        size = attention.inner_dim // attention.heads
        heads, width = wide.heads // attention.heads, (wide.inner_dim // wide.heads) // size
        if wide.inner_dim != attention.inner_dim * heads * width:
            raise UserError(
                f"{path}: {attention.heads} attention heads of {size} channels cannot be replicated to {wide.heads}:"
                " choose other factors for student.widen, or student.start random"
            )
        inner = torch.arange(attention.inner_dim).view(attention.heads, size)
        inner = inner.repeat_interleave(heads, 0).repeat_interleave(width, 1).flatten()
        if attention.group_norm is not None:
            self.layer(f"{path}.group_norm", channels, channels)
        for name in ("to_q", "to_k", "to_v"):
            self.layer(f"{path}.{name}", channels, inner)
            for part in () if name == "to_v" else ("weight", "bias"):
                self.state[f"{path}.{name}.{part}"] *= width**-0.25
        self.layer(f"{path}.to_out.0", inner, channels)

    def _replicated(
        self, value: torch.Tensor, inputs: torch.Tensor | None, outputs: torch.Tensor | None
    ) -> torch.Tensor:
        """A weight (C_out, C_in, ...), or one value for each output (C_out,), or a number."""
        if value.ndim and outputs is not None:
            value = value[outputs]
        if value.ndim > 1 and inputs is not None:
            shares = self._shares(len(value), inputs)
            value = value[:, inputs] * shares.view(*shares.shape, *([1] * (value.ndim - 2)))
        return value.clone()

    def _shares(self, rows: int, copies: torch.Tensor) -> torch.Tensor:
        """(rows, C_wide): in each row the shares of a channel's replicas add up to 1."""
        counts = torch.bincount(copies)
        noise = torch.randn(rows, len(copies), generator=self.generator)
        sums = torch.zeros(rows, len(counts)).index_add_(1, copies, noise)
        return (1 + SPREAD * (noise - (sums / counts)[:, copies])) / counts[copies]
