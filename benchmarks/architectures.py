"""Three published DDPMs as configs: all that time and memory depend on; and two tiny ones, to try a script in seconds.

A script beside this file imports it by name.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "configs" / "architectures"


def published(name: str) -> dict[str, Any]:
    """The network of ``configs/architectures/NAME``, as its JSON has it."""
    config: dict[str, Any] = json.loads((FOLDER / name / "unet" / "config.json").read_text())
    return config


CIFAR10 = published("ddpm-cifar10-32")
CELEBA64 = published("ddpm-celeba-64")
CELEBAHQ = published("ddpm-celebahq-256")
TINY: dict[str, Any] = {**CIFAR10, "layers_per_block": 1, "block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}
TWO_LEVELS: dict[str, Any] = {
    **TINY,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "add_attention": False,
}
ARCHITECTURES = {
    "cifar10": CIFAR10,
    "celeba64": CELEBA64,
    "celebahq": CELEBAHQ,
    "tiny": TINY,
    "two_levels": TWO_LEVELS,
}
