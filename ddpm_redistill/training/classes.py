"""The classes that a class-conditional network is trained with: which, and how often none is told."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config import DistillConfig, TrainingConfig
from ..errors import UserError
from ..pipelines.conditioning import Conditioning
from ..sources.class_labels import conditioned, labels_of_source
from ..sources.image_source import ImageSource
from ..sources.teacher import Teacher

LABEL_DROPOUT = 0.1
"""Share of the labels that are replaced by the null class where nobody says (Ho and Salimans 2022 use 0.1 to 0.2)."""


@dataclass(frozen=True)
class Classes:
    """``labels``: of the run's images, int64 (N,), in the numbers of the network's ``conditioning``; ``dropout``: the
    share of a batch's that is drawn to be replaced by the null class."""

    labels: torch.Tensor
    conditioning: Conditioning
    dropout: float
    sha256: str | None

    def records(self) -> dict[str, Any]:
        """What a run keeps of them beside what it keeps of the images."""
        return {"label_sha256": self.sha256, "classes": list(self.conditioning.names)}


def classes_of_data(images: ImageSource, training: TrainingConfig) -> Classes:
    """Of a network that is made for the images: their classes, and a null class if labels are dropped.

    Raises:
        UserError: the images have no labels.
    """
    labels, names = labels_of_source(images, "class_conditional is set")
    dropout = LABEL_DROPOUT if training.label_dropout is None else training.label_dropout
    conditioning = Conditioning(names, len(names) if dropout else None)
    return Classes(labels, conditioning, dropout, images.label_fingerprint)


def classes_of_teacher(images: ImageSource, teacher: Teacher, config: DistillConfig) -> Classes | None:
    """Of a student: its teacher's; None of a teacher without classes.

    Raises:
        UserError: the images have no labels or other classes; labels are to be dropped, or guidance is to be learned,
            and there is no null class, or no class at all.
    """
    dropout, guidance = config.training.label_dropout, config.loss.guidance
    embeddings = teacher.unet.config.num_class_embeds
    if embeddings is None:
        for name, value in (("training.label_dropout", dropout), ("loss.guidance", guidance)):
            if value is not None:
                raise UserError(f"{name} is set, but {teacher.ref} has no classes: leave it out")
        return None
    labels, conditioning = conditioned(images, embeddings, teacher.id2label, teacher.ref)
    if guidance is not None and teacher.learned_guidance is not None:
        raise UserError(
            f"loss.guidance is set, but {teacher.ref} has learned guidance {teacher.learned_guidance:g} already, which"
            " its output has in one pass: leave loss.guidance out"
        )
    for name, value in (("training.label_dropout", dropout), ("loss.guidance", guidance)):
        if value and conditioning.null is None:
            raise UserError(
                f"{name} is {value:g}, which needs a null class, and each of the {embeddings} class embeddings of"
                f" {teacher.ref} is a class"
            )
    # A student has learned its teacher's guidance where that is all it was taught.
    learned = guidance if config.loss.task or teacher.learned_guidance is None else teacher.learned_guidance
    if dropout is None:
        dropout = LABEL_DROPOUT if conditioning.null is not None and learned is None else 0.0
    conditioning = replace(conditioning, learned_guidance=learned)
    return Classes(labels, conditioning, dropout, images.label_fingerprint)
