"""What the tests of a classifier's verbs share: labelled images, and tiny runs of ``teach`` and ``distill``."""

from pathlib import Path
from typing import Any

import numpy as np
from training_helpers import TRAIN, arguments

SIZE, CLASSES = 16, 6
TRAINING = {**TRAIN, "steps": 6, "batch_size": 8, "checkpoint_every": 2, "ema_decay": 0.0, "learning_rate": 0.01}


def make_labelled(path: Path, count: int = 60, seed: int = 0, classes: int = CLASSES) -> Path:
    """An .npz of noise with a bright row whose place is the class."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 100, (count, SIZE, SIZE, 1), dtype=np.uint8)
    labels = np.arange(count) % classes
    images[np.arange(count), 2 * labels] = 255
    np.savez(path, images=images, labels=labels)
    return path


def teach_argv(data: Path, folder: Path, **more: Any) -> list[str]:
    settings = {"architecture": "wrn:10-1", "data": data, "image_size": SIZE, "channels": 1, "output_dir": folder}
    return ["teach", *arguments({**settings, "training": TRAINING, **more})]


def distill_argv(teacher: Path, data: Path, folder: Path, **more: Any) -> list[str]:
    settings = {"teacher": teacher, "data": data, "output_dir": folder, "training": TRAINING}
    return ["distill", *arguments({**settings, **more})]
