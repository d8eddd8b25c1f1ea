"""A tiny classifier of coloured squares, its student, and a run of each; as a program it is such a run."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from training_helpers import TRAIN

from ddpm_redistill.config import LOSS_TERMS, ClassificationConfig, LossConfig, TeachConfig, TrainingConfig
from ddpm_redistill.core.taps import Tap
from ddpm_redistill.recipes import classifier_loss
from ddpm_redistill.sources.image_source import ImageSource, from_array
from ddpm_redistill.training.batch_norm import batch_norm_record
from ddpm_redistill.training.classify import (
    Classify,
    LabelledImages,
    distillation_objective,
    labelled_images,
    teaching_objective,
)
from ddpm_redistill.training.comparison import Place, comparing, feature_terms, make_regressors, objectives_by_step
from ddpm_redistill.training.run import open_run
from ddpm_redistill.training.step_memory import StepMemory

SIZE, CLASSES = 16, ("red", "green", "blue")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SGD = {**TRAIN, "steps": 8, "batch_size": 8, "optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-4}
SGD |= {"schedule": "steps", "milestones": [0.5, 0.75], "milestone_factor": 0.2, "ema_decay": 0.0}
PLACES = [
    Place(Tap("stem", "output"), Tap("middle", "output"), 8, 12),
    Place(Tap("middle", "output"), Tap("middle", "output"), 12, 12),
]
WEIGHTS = "model.safetensors"


class TinyClassifier(nn.Module):
    """(B, 3, 16, 16) -> (B, 3): stem 8 channels, middle 12 channels at 8 px, with BatchNorm and dropout."""

    def __init__(self, strides: tuple[int, int], seed: int = 0, dropout: float = 0.1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, 8, 3, strides[0], 1)
            self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU()
            self.middle = nn.Conv2d(8, 12, 3, strides[1], 1)
            self.drop, self.head = nn.Dropout(dropout), nn.Linear(12, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.middle(self.act(self.norm(self.stem(x)))).relu().mean((2, 3))))


def squares(count: int = 48, seed: int = 0) -> ImageSource:
    """Noise with a square of one channel, which is the class, at a random place."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (count,), generator=generator)
    for image, label, (top, left) in zip(
        images, labels, torch.randint(10, (count, 2), generator=generator), strict=True
    ):
        image[label, top : top + 6, left : left + 6] = 255
    return from_array(images.permute(0, 2, 3, 1).numpy(), "squares", SIZE, 3).with_labels(labels, CLASSES)


def save(network: nn.Module, folder: Path) -> None:
    folder.mkdir()
    save_file(network.state_dict(), folder / WEIGHTS)


def task_of(data: LabelledImages, crop: str = "padded") -> Classify:
    return Classify(data=data, mean=MEAN, std=STD, save=save, crop=crop, horizontal_flip=True)


def refuse(source: str) -> ImageSource:
    raise AssertionError(source)


def labelled(held_out: float = 0.25) -> LabelledImages:
    return labelled_images(squares(), ClassificationConfig(held_out=held_out), 0, refuse)


def no_memory(training: TrainingConfig) -> StepMemory:
    raise AssertionError("no memory_budget is given")


def train_classifier(
    folder: Path, *, loss: dict[str, Any] | None = None, resume: bool = False, dropout: float = 0.1, **training: Any
) -> nn.Module:
    """A teacher, or with ``loss`` a student of a random one -> it."""
    config = TeachConfig(output_dir=str(folder), training=TrainingConfig(**{**SGD, **training}))
    run = open_run(config, resume=resume, anyway=False)
    config = replace(config, training=run.fitted(config.training, no_memory))
    run = run.settled(config)
    data = labelled_images(squares(), ClassificationConfig(held_out=0.25), config.seed, refuse)
    network = TinyClassifier((1, 2) if loss is None else (2, 1), dropout=dropout)
    records = run.records({}, {**data.records(), **batch_norm_record(network, config.training)})
    with run.begun(records):
        task = task_of(data)
        if loss is None:
            run.train(network, task, data.images, lambda _: teaching_objective, {"task": 1.0}, "teacher")
            return network
        terms = classifier_loss(LossConfig(**loss))
        weights = {name: float(getattr(terms, name)) for name in LOSS_TERMS}
        teacher = TinyClassifier((1, 2), seed=7).eval().requires_grad_(False)
        regressors = make_regressors(terms, PLACES, config.seed)
        with comparing(teacher, network, PLACES if feature_terms(terms) else ()) as compared:
            objective_at = objectives_by_step(
                lambda each: distillation_objective(teacher, each, compared), terms, config.training.steps
            )
            run.train(network, task, data.images, objective_at, weights, "student", loss_modules=regressors)
    return network


if __name__ == "__main__":  # folder, loss and training as JSON
    torch.set_num_threads(1)
    train_classifier(Path(sys.argv[1]), loss=json.loads(sys.argv[2]), **json.loads(sys.argv[3]))
