"""Networks whose memory is known: the CIFAR-10 architecture, a small UNet, blocks by hand."""

from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ddpm_redistill.core.memory import MemoryProfile

# config.json of google/ddpm-celebahq-256
CELEBAHQ = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}

MIB = 2**20


def cifar10_teacher() -> nn.Module:
    """The network of google/ddpm-cifar10-32."""
    return UNet2DModel(  # type: ignore[return-value]
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def small_unet() -> nn.Module:
    return UNet2DModel(  # type: ignore[return-value]
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def conditional_unet() -> nn.Module:
    """A text-to-image UNet in small: sample (B, 4, 16, 16), timestep, encoder states (B, L, 8)."""
    return UNet2DConditionModel(  # type: ignore[return-value]
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def image(batch: int, size: int, channels: int = 3) -> Tensor:
    return torch.empty(batch, channels, size, size, device="meta")


class ResidualBlock(nn.Module):
    """A pre-activation block: `channels` in and out, `width` between, a time embedding when asked."""

    def __init__(self, channels: int, width: int, time_embedding: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(5, width) if time_embedding else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(x))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(h.new_ones(len(x), 5))[:, :, None, None]
        return x + self.conv2(F.silu(h))


class SkipNetwork(nn.Module):
    """stem, then `layers` blocks, then one of: the stem's map concatenated, added, or left alone."""

    def __init__(self, layers: int, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(4, 4) for _ in range(layers)))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.join(self.blocks(skip), skip)


class GatedBlock(nn.Module):
    """A RED block by structure."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate_conv = nn.Conv2d(channels, channels, 1)
        self.residual_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate_conv(x).sigmoid() + F.relu6(self.residual_conv(x))


BACKEND_COPIES = 0.1
"""Of the peak: how far the real one may be above it where a backend copies a map to lay it out in another way."""


def assert_fake_is_real(fake: MemoryProfile, real: MemoryProfile) -> None:
    """Equal in everything; or, on processors whose convolutions put out maps in a layout of their own, which the layer
    behind copies first, equal but for these copies."""
    operations = Counter(point.operation for point in real.timeline)
    more = operations - Counter(point.operation for point in fake.timeline)
    if set(more) == {"aten.clone.default"}:
        assert 0 <= real.tensor_peak - fake.tensor_peak <= BACKEND_COPIES * fake.tensor_peak
        for name in ("paper_peak", "weights", "parameters", "macs"):
            assert getattr(real, name) == getattr(fake, name)
    else:
        assert fake == real
