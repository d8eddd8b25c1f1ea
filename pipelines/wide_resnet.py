"""Wide residual networks of small images. Imports torch only: this file travels inside student folders.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146; the layers are those of
Crowley, Gray and Storkey's Moonshine (arXiv 1711.02613).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

STEM_CHANNELS = 16


class WideBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions; (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.norm2(self.conv1(activated)), inplace=True)) + shortcut


class WideResNet(nn.Module):
    """WRN-depth-width; (B, in_channels, H, W) -> logits (B, num_classes).

    Args:
        depth: 6 n + 4, with n blocks in each of three groups, the second and the third of which start with stride 2.
        width: the groups have 16, 32 and 64 times as many channels.

    Raises:
        ValueError: a depth that is not 6 n + 4, or a width below 1.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth {depth} is not 6 n + 4, as 10, 16, 22, 28 and 40 are")
        if width < 1:
            raise ValueError(f"width {width} is below 1")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 3, padding=1, bias=False)
        channels = STEM_CHANNELS
        for level, stride in enumerate((1, 2, 2)):
            before, channels = channels, STEM_CHANNELS * 2**level * width
            strides = [stride] + [1] * (blocks - 1)
            inputs = [before] + [channels] * (blocks - 1)
            group = nn.Sequential(*(WideBlock(c, channels, s) for c, s in zip(inputs, strides, strict=True)))
            self.add_module(f"group{level + 1}", group)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        return self.classifier(F.relu(self.norm(x), inplace=True).mean((2, 3)))
