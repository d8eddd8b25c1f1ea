"""A tiny student for the tests of export."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import nn
from training_helpers import SIZE, UNET

from ddpm_redistill import RedDDPMPipeline, StudentConfig, plan_student
from ddpm_redistill.students.derive import build_student


def make_student(folder: Path) -> Path:
    """A v-predicting student with attention, whose BatchNorms are far from doing nothing; the same every time."""
    down, up = ["DownBlock2D", "AttnDownBlock2D"], ["AttnUpBlock2D", "UpBlock2D"]
    shape = {"block_out_channels": [8, 16], "down_block_types": down, "up_block_types": up}
    config = {**UNET, **shape, "sample_size": SIZE, "in_channels": 1, "out_channels": 1, "_class_name": "UNet2DModel"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(config, plan_student(config, StudentConfig(red_placement="outer"))).eval()
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(value, 0.5, 1.5)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    RedDDPMPipeline(student, scheduler).save_pretrained(folder)
    return folder
