"""Two published DDPMs as configs: all that time and memory depend on; and two tiny ones, to try a script in seconds.

A script beside this file imports it by name.
"""

from typing import Any

CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CELEBAHQ: dict[str, Any] = {
    **CIFAR10,
    "sample_size": 256,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
TINY: dict[str, Any] = {**CIFAR10, "layers_per_block": 1, "block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}
TWO_LEVELS: dict[str, Any] = {
    **TINY,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "add_attention": False,
}
ARCHITECTURES = {"cifar10": CIFAR10, "celebahq": CELEBAHQ, "tiny": TINY, "two_levels": TWO_LEVELS}
