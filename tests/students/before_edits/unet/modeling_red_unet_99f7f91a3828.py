"""The student network: a ``UNet2DModel`` that down-samples at its front, with RED blocks; its config holds its plan.

It carries its own code: ``save_pretrained`` puts it beside the weights, so that diffusers can open the folder where
this package is not (docs/sharing.md).
"""

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps

# diffusers refuses a pipeline component whose module has no ModelMixin in its namespace.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from torch import nn

"""RED (residual encoded distillation) block, and the wrapper that puts one on each side of a layer.

Source: Chen et al., "ReDistill: Residual Encoded Distillation for Peak Memory Reduction of CNNs",
TMLR 2025, arXiv 2406.03744. Imports torch only: this file travels inside student folders.
"""

import torch
from torch import nn

# Identity-like start: gate = sigmoid(4) = 0.982, residual = relu6(0.01) = 0.01. Both sit where their
# gradient is alive (relu6 has none at exactly 0, sigmoid next to none past 6).
IDENTITY_GATE_BIAS = 4.0
IDENTITY_RESIDUAL_BIAS = 0.01

RED_NORMS = ("batch", "group")
RED_STARTS = ("paper", "identity")


class REDBlock(nn.Module):
    """``y = x * gate(x) + residual(x)``; (B, C, H, W) -> (B, C, H, W).

    gate(x) = sigmoid(norm(conv1x1(x))) and residual(x) = relu6(norm(conv3x3(x))).

    Args:
        channels: C.
        norm: "batch" (the paper's) or "group" (independent of the batch; 8 groups where they divide C).
        start: "paper" (PyTorch's default initialisation) or "identity" (y is close to x at the start,
            which a student that is warm started from its teacher needs).

    Raises:
        ValueError: an unknown norm or start.
    """

    def __init__(self, channels: int, norm: str = "batch", start: str = "paper"):
        super().__init__()
        if start not in RED_STARTS:
            raise ValueError(f"unknown RED start {start!r}: expected one of {', '.join(RED_STARTS)}")
        # No bias before a norm: the norm's own shift does its work.
        self.gate_conv = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.gate_norm = _norm(norm, channels)
        self.residual_conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.residual_norm = _norm(norm, channels)
        if start == "identity":
            for layer, bias in (
                (self.gate_norm, IDENTITY_GATE_BIAS),
                (self.residual_norm, IDENTITY_RESIDUAL_BIAS),
            ):
                nn.init.zeros_(layer.weight)
                nn.init.constant_(layer.bias, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In place where gradients allow it: a map less at the peak, and a pass over memory less, for each.
        gate = self.gate_norm(self.gate_conv(x)).sigmoid_()
        residual = nn.functional.relu6(self.residual_norm(self.residual_conv(x)), inplace=True)
        return torch.addcmul(residual, x, gate) if torch.is_grad_enabled() else residual.addcmul_(x, gate)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold the BatchNorms of a network's RED blocks into their convolutions: the same outputs to rounding.

    For inference; in place and not to be undone: the network no longer loads into its class, so save it before.

    Raises:
        RuntimeError: the network is in training mode, where BatchNorm does not use its running statistics.
    """
    if network.training:
        raise RuntimeError("fold_batch_norms is for inference: call eval() first")
    for block in network.modules():
        for branch in ("gate", "residual"):
            norm = getattr(block, f"{branch}_norm", None)
            if isinstance(block, REDBlock) and isinstance(norm, nn.BatchNorm2d):
                conv = nn.utils.fuse_conv_bn_eval(getattr(block, f"{branch}_conv"), norm)
                setattr(block, f"{branch}_conv", conv)
                setattr(block, f"{branch}_norm", nn.Identity())


class RedAround(nn.Module):
    """A layer with a RED block before and/or after it; takes and passes on the layer's own arguments."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.red_in: nn.Module = nn.Identity()
        self.layer = layer
        self.red_out: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return self.red_out(self.layer(self.red_in(x), *args, **kwargs))


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
    raise ValueError(f"unknown RED norm {kind!r}: expected one of {', '.join(RED_NORMS)}")


def travelling_code(path: Path) -> str:
    """The source of a module with those of its own folder that it imports in the place of the imports: one file,
    since the hub's client fetches no other beside it."""

    def imported(found: re.Match[str]) -> str:
        return travelling_code(path.with_name(f"{found[1]}.py"))

    return re.sub(r"^from \.(\w+) import .*\n", imported, path.read_text(encoding="utf-8"), flags=re.MULTILINE)


# Read when imported, as the code that runs is; a file of it, opened elsewhere, gives the same again.
CODE = travelling_code(Path(__file__))
# diffusers runs a folder's code from a copy in one cache, by file name: other code must have another name.
CODE_VERSION = hashlib.sha256(CODE.encode()).hexdigest()[:12]
CODE_NAME = f"modeling_red_unet_{CODE_VERSION}"


class RedUNet2DModel(UNet2DModel):
    """(B, C_in, H, W), timesteps (B,) -> (B, C_out, H, W), every feature map ``reduction`` times smaller a side.

    All arguments but the last are ``UNet2DModel``'s, with the teacher's values (``sample_size`` stays the
    image's, ``block_out_channels`` the teacher's widths). They are written out since diffusers records a config
    from the signature. In the config block names read "RedUNet2DModel.DownBlock2D", with or without which they are
    taken: ``UNet2DModel``, which would open a student with a warning and random layers, knows no such block.

    Args:
        student_plan: ``StudentPlan.to_dict()``. Read here: ``reduction``, ``widen`` (absent: 1 everywhere),
            ``red_norm``, ``red_start`` and the names of ``blocks``; the rest (which teacher layer each block was
            matched to) is kept so that the folder says how it was made.

    Raises:
        ValueError: there is no plan, or its ``widen`` has not one factor for each level.

    The changes, and nothing else: the stem takes stride r; the last log2(r) down-samplers and the mirrored
    up-samplers keep their convolution and lose their stride; the head makes r*r values for each position and
    lays them out as pixels; level i has ``widen[i]`` times the teacher's channels, the time embedding the
    teacher's; the plan's RED blocks stand around the layers that it names.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        student_plan: dict[str, Any] | None = None,
    ):
        if not student_plan:
            raise ValueError("RedUNet2DModel needs a student_plan; a network without one is a UNet2DModel")
        widen = student_plan.get("widen") or [1] * len(block_out_channels)
        if len(widen) != len(block_out_channels):
            raise ValueError(f"widen has {len(widen)} factors for {len(block_out_channels)} levels")
        down_blocks = tuple(name.split(".")[-1] for name in down_block_types)
        up_blocks = tuple(name.split(".")[-1] for name in up_block_types)
        widths = [channels * factor for channels, factor in zip(block_out_channels, widen, strict=True)]
        time_channels = time_embedding_dim or 4 * block_out_channels[0]
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_channels,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=down_blocks,
            mid_block_type=mid_block_type,
            up_block_types=up_blocks,
            block_out_channels=tuple(widths),
            layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            class_embed_type=class_embed_type,
            num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps,
        )
        # The line above has recorded the student's own values: a network built from them would be widened twice.
        self.register_to_config(block_out_channels=block_out_channels, time_embedding_dim=time_embedding_dim)
        self.register_to_config(
            down_block_types=tuple(f"RedUNet2DModel.{name}" for name in down_blocks),
            up_block_types=tuple(f"RedUNet2DModel.{name}" for name in up_blocks),
        )
        self.__module__ = CODE_NAME  # what a pipeline's model_index.json records as the place of this class

        # widths: the time is projected as in the teacher, since other widths would be other frequencies
        if widen[0] > 1:
            width = block_out_channels[0]
            if time_embedding_type == "learned":
                self.time_proj = nn.Embedding(num_train_timesteps, width)
            else:
                self.time_proj = Timesteps(width, flip_sin_to_cos, freq_shift)
            self.time_embedding = TimestepEmbedding(width, time_channels)
        # and where the teacher's shortcut is a projection, it is one even between levels that are now equally wide
        for i in range(1, len(widths)):
            if block_out_channels[i - 1] != block_out_channels[i] and widths[i - 1] == widths[i]:
                self.down_blocks[i].resnets[0].conv_shortcut = nn.Conv2d(widths[i], widths[i], kernel_size=1)

        reduction = student_plan["reduction"]
        channels = widths[0]

        # stem: kernel r + 1, so that every pixel is read at any stride (3x3 at r = 2, as in the paper)
        self.conv_in = nn.Conv2d(in_channels, channels, reduction + 1, stride=reduction, padding=reduction // 2)

        # the deepest log2(r) levels lose their stride, a down-sampler together with its mirrored up-sampler
        moved = reduction.bit_length() - 1
        strided = len(block_out_channels) - 1
        for depth in range(moved):
            remove_stride(self.down_blocks[strided - 1 - depth].downsamplers[0])
            remove_stride(self.up_blocks[depth].upsamplers[0])

        # head: the image grows back by r
        self.conv_out = nn.Sequential(
            nn.Conv2d(channels, out_channels * reduction**2, kernel_size=3, padding=1),
            nn.PixelShuffle(reduction),
        )

        for block in student_plan["blocks"]:
            path, side = block["name"].rsplit(".", 1)
            layer = self.get_submodule(path)
            if not isinstance(layer, RedAround):
                layer = RedAround(layer)
                self.set_submodule(path, layer)
            setattr(layer, side, REDBlock(block["channels"], student_plan["red_norm"], student_plan["red_start"]))

    @functools.wraps(UNet2DModel.save_pretrained)  # a pipeline looks for `variant` and others in the signature
    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """``ModelMixin.save_pretrained``, with this class's code beside config and weights."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{CODE_NAME}.py").write_text(CODE, encoding="utf-8", newline="\n")
        super().save_pretrained(save_directory, *args, **kwargs)


def remove_stride(sampler: nn.Module) -> None:
    """Make a diffusers down- or up-sampler, convolution or resnet, keep its resolution; weights keep their shape."""
    if hasattr(sampler, "time_emb_proj"):  # ResnetBlock2D: its resampling has no weights
        sampler.downsample = sampler.upsample = None
    elif hasattr(sampler, "interpolate"):  # Upsample2D
        sampler.interpolate = False
    else:  # Downsample2D; padding 0 means "pad right and below", which is for stride 2 only
        sampler.padding = 1
        sampler.conv.stride = (1, 1)
        sampler.conv.padding = (1, 1)
