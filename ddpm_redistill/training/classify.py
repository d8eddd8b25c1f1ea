"""The task of a classifier: name the class of an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import ClassificationConfig, DistillConfig, LossConfig, TeachConfig, TrainingConfig
from ..core.accuracy import correct_in_top
from ..core.augment import PADDING, flipped, normalised, padded_crop, random_boxes, resized_crop
from ..core.logit_losses import cross_entropy, logit_distillation
from ..core.taps import Maps
from ..errors import UserError
from ..families.classifier_config import ClassifierConfig
from ..families.classifier_files import save_classifier
from ..sources.class_labels import labels_of_classifier, labels_of_source, numbered
from ..sources.held_out import split
from ..sources.image_source import ImageSource
from ..sources.images import open_images
from ..sources.predictions import logits_of
from .comparison import Compared, feature_parts, feature_terms
from .gradient import Batch, Objective
from .run_folder import write_folder

RESIZED_FROM = 96
"""Pixels a side from which on images are photographs of things, whose crops are resized."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """What a classifier learns from, and what it is tried on.

    Args:
        images, labels: to learn from, and the class of each, int64 (N,), in the network's numbers.
        held, held_labels: held out; None and empty where none are.
        names: of the network's classes.
    """

    images: ImageSource
    labels: torch.Tensor
    held: ImageSource | None
    held_labels: torch.Tensor
    names: tuple[str, ...]

    def __str__(self) -> str:
        held = "none held out" if self.held is None else f"held out {self.held.description}"
        return f"{self.images.description}; {held}"

    def records(self) -> dict[str, Any]:
        """What a run keeps of them."""
        held = {} if self.held is None else {"held_out_sha256": self.held.fingerprint}
        return {
            "data_sha256": self.images.fingerprint,
            "label_sha256": self.images.label_fingerprint,
            **held,
            "classes": list(self.names),
        }


def source_opener(config: DistillConfig | TeachConfig, image_size: int, channels: int) -> Callable[[str], ImageSource]:
    """Opens a source of images as a run's data are opened."""
    how: dict[str, Any] = {"on_bad_image": config.on_bad_image, "data_range": config.data_range}
    return lambda source: open_images(source, image_size=image_size, channels=channels, **how)


def labelled_images(
    images: ImageSource,
    config: ClassificationConfig,
    seed: int,
    open_source: Callable[[str], ImageSource],
    *,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    ref: str = "this run",
) -> LabelledImages:
    """Of a source: what is learned, and what ``config`` holds out of it.

    Args:
        open_source: opens ``config.held_out`` where it is a source of its own, as ``images`` were opened.
        num_classes, names: of the classifier that ``ref`` is, which may have no names; None of one that is made for
            the images.

    Raises:
        UserError: images without labels, or with other classes than the network; ``held_out`` as ``split``.
    """
    if num_classes is None:
        _, known = labels_of_source(images, "a classifier learns labels")
    else:
        _, known = labels_of_classifier(images, num_classes, names, ref)
    learned, held = split(images, config.held_out, seed, open_source)
    none = torch.empty(0, dtype=torch.int64)
    return LabelledImages(
        images=learned,
        labels=numbered(learned, known, ref),
        held=held,
        held_labels=none if held is None else numbered(held, known, ref),
        names=known,
    )


@dataclass(frozen=True, kw_only=True)
class Classify:
    """A ``Task`` (``tasks.py``).

    Args:
        data: what is learned, and what the network is tried on meanwhile.
        mean, std: of each channel of its input, in shares of white: (pixel / 255 - mean) / std.
        save: writes the finished network into a folder.
        crop: padded, resized or none: ``crop_of``.
        horizontal_flip: flip half of the images left to right.
    """

    data: LabelledImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    save: Callable[[nn.Module, Path], None]
    crop: str
    horizontal_flip: bool

    def prepared(self, images: ImageSource, device: torch.device) -> ImageSource:
        return images

    def draw(
        self, order: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
    ) -> Batch:
        """``flips`` bool (B,), ``class_labels`` int64 (B,), and of a crop ``offsets`` int64 (B, 2) or ``boxes`` int64
        (B, 4)."""
        count = len(order)
        drawn = {"flips": torch.rand(count, generator=generator, device=device) < 0.5}
        if self.crop == "padded":
            drawn["offsets"] = torch.randint(2 * PADDING + 1, (count, 2), generator=generator, device=device)
        if self.crop == "resized":
            drawn["boxes"] = random_boxes(count, shape[-1], generator, device)
        return {**drawn, "class_labels": self.data.labels[order].to(device)}

    def batch(self, images: torch.Tensor, drawn: Batch) -> Batch:
        """``images`` float32 (b, C, H, W), augmented and normalised, and ``class_labels`` int64 (b,)."""
        if self.horizontal_flip:
            images = flipped(images, drawn["flips"])
        if self.crop == "padded":
            images = padded_crop(images, drawn["offsets"])
        if self.crop == "resized":
            images = resized_crop(images, drawn["boxes"])
        return {"images": normalised(images, self.mean, self.std), "class_labels": drawn["class_labels"]}

    def look(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """``held_out_top1``, the share of the held-out images whose class is the network's first, and of more than five
        classes ``held_out_top5``; nothing where none are held out."""
        if self.data.held is None:
            return {}
        device = next(network.parameters()).device
        logits = logits_of(network, self.data.held, self.mean, self.std, device)
        tops = (1, 5) if logits.shape[1] > 5 else (1,)
        right = {k: correct_in_top(logits, self.data.held_labels, k) for k in tops}
        return {f"held_out_top{k}": int(each.sum()) / len(each) for k, each in right.items()}

    def write(self, network: nn.Module, folder: Path) -> None:
        need = sum(value.nbytes for value in network.state_dict().values())
        write_folder(folder, need, lambda aside: self.save(network, aside))


def classifying(config: DistillConfig | TeachConfig, network: ClassifierConfig, data: LabelledImages) -> Classify:
    """The task of a run of ``network`` on ``data``."""
    return Classify(
        data=data,
        mean=network.mean,
        std=network.std,
        save=lambda trained, folder: save_classifier(trained, network, folder),
        crop=crop_of(config.classification, network.image_size),
        horizontal_flip=config.horizontal_flip,
    )


def crop_of(config: ClassificationConfig, image_size: int) -> str:
    """``config.crop`` of images of ``image_size`` pixels a side: padded, resized or none."""
    if config.crop == "auto":
        return "resized" if image_size >= RESIZED_FROM else "padded"
    return config.crop


def check_training(training: TrainingConfig) -> None:
    """Raises UserError for a setting of training that only a DDPM has."""
    if training.label_dropout is not None:
        raise UserError(
            "training.label_dropout is set, which is of class-conditional DDPMs, and this is a classifier: leave it out"
        )
    if training.gradient_checkpointing:
        raise UserError(
            "training.gradient_checkpointing would have the BatchNorms of a classifier count each batch twice: leave it"
            " out, and raise training.gradient_accumulation where memory is short"
        )


def teaching_objective(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """The loss parts of a classifier that learns from labels alone: ``task``, the cross-entropy."""
    return {"task": cross_entropy(network(batch["images"]), batch["class_labels"])}


def distillation_objective(teacher: nn.Module, loss: LossConfig, compared: Compared) -> Objective:
    """The loss parts of a batch, by name, unweighted: task, and all others that have a weight.

    The teacher is run as far as they need: not at all for task alone, without output to the last map that is compared.
    The objective takes the student and the batch, and with ``loss.fitnet`` the regressors.

    Args:
        teacher: images as the student is given -> logits (B, K); in evaluation mode.
    """
    terms = feature_terms(loss)

    def objective(network: nn.Module, batch: Batch, regressors: nn.Module | None = None) -> dict[str, torch.Tensor]:
        images, teacher_logits = batch["images"], None
        teacher_maps: Maps = {}
        if terms or loss.output:
            # Before the student: the teacher's working memory is free again before the student's activations are kept.
            with torch.no_grad():
                teacher_logits, teacher_maps = compared.teacher.run(teacher, images, to_last_tap=not loss.output)
        if terms:
            logits, student_maps = compared.student.run(network, images)
        else:
            logits, student_maps = network(images), {}
        parts = {"task": cross_entropy(logits, batch["class_labels"])}
        if teacher_logits is not None:
            parts["output"] = logit_distillation(logits, teacher_logits, float(loss.temperature or 1))
        if terms:
            parts |= feature_parts(terms, compared, student_maps, teacher_maps, regressors, str(loss.feature_places))
        return parts

    return objective
