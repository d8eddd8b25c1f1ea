"""Tiny students for the tests of export, without classes and with."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn
from training_helpers import SIZE, UNET

from ddpm_redistill import RedDDPMPipeline, StudentConfig, plan_student
from ddpm_redistill.students.derive import build_student

ID2LABEL = {"0": "cat", "1": "dog", "2": "emu"}
NULL = len(ID2LABEL)


def make_student(folder: Path, num_class_embeds: int | None = None, **classes: Any) -> Path:
    """A v-predicting student with attention, whose BatchNorms are far from doing nothing; the same every time.

    ``classes``: ``id2label`` and ``learned_guidance`` of one with class embeddings.
    """
    down, up = ["DownBlock2D", "AttnDownBlock2D"], ["AttnUpBlock2D", "UpBlock2D"]
    shape = {"block_out_channels": [8, 16], "down_block_types": down, "up_block_types": up}
    config = {**UNET, **shape, "sample_size": SIZE, "in_channels": 1, "out_channels": 1, "_class_name": "UNet2DModel"}
    if num_class_embeds is not None:
        config["num_class_embeds"] = num_class_embeds
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(config, plan_student(config, StudentConfig(red_placement="outer"))).eval()
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(value, 0.5, 1.5)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    RedDDPMPipeline(student, scheduler, **classes).save_pretrained(folder)
    return folder


def make_conditional_student(folder: Path, learned_guidance: float | None = None) -> Path:
    """One with three classes and a null class; of the same weights whatever it has learned."""
    return make_student(folder, NULL + 1, id2label=ID2LABEL, learned_guidance=learned_guidance)
