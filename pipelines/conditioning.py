"""How a network is conditioned on classes: their names, the null class, and classifier-free guidance.

Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv 2207.12598. Guidance has diffusers' scale here: 1 is
the conditional prediction alone, more goes past it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Of a network with ``num_class_embeds`` embeddings of classes.

    Args:
        names: of the classes; label i is ``names[i]``.
        null: the label that stands for no class, the last embedding; None where there is none.
        learned_guidance: the guidance scale of its teacher that a student has learned; None: of no guidance.
    """

    names: tuple[str, ...]
    null: int | None
    learned_guidance: float | None = None

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[str, str]:
        """As ``model_index.json`` has it."""
        return {str(label): name for label, name in enumerate(self.names)}

    @property
    def index_entries(self) -> dict[str, Any]:
        """All that ``model_index.json`` has of classes, as ``RedDDPMPipeline`` takes it."""
        return {"id2label": self.id2label, "learned_guidance": self.learned_guidance}

    @property
    def guidable(self) -> bool:
        """Can a scale be chosen, for a second pass with the null class?"""
        return self.null is not None and self.learned_guidance is None

    def labels(self, given: int | Sequence[int] | None = None) -> tuple[int, ...]:
        """The labels that images take in turn: those given, or all classes. Raises ValueError for one that is none."""
        labels = range(self.num_classes) if given is None else (given,) if isinstance(given, int) else tuple(given)
        outside = [label for label in labels if not 0 <= label < self.num_classes]
        if outside or not labels:
            what = f"label {outside[0]} is none of" if outside else "no label is given of"
            raise ValueError(
                f"{what} this model's {self.num_classes} classes: give labels from 0 to {self.num_classes - 1}"
            )
        return tuple(labels)

    def passes_with(self, guidance_scale: float | None) -> bool:
        """Does this guidance take two passes: with the label, and with the null class?

        Raises:
            ValueError: it is no scale, there is no null class, or the network has learned another one.
        """
        if guidance_scale is None or guidance_scale == self.learned_guidance:
            return False
        if not is_scale(guidance_scale):
            raise ValueError(f"guidance must be a finite number from 0 on, not {guidance_scale}")
        if self.learned_guidance is not None:
            raise ValueError(
                f"this model has learned guidance {self.learned_guidance:g}, which it makes in one pass, and no other:"
                f" leave guidance out, not {guidance_scale:g}"
            )
        if guidance_scale == 1:
            return False
        if self.null is None:
            raise ValueError(
                "guidance needs a null class, and this model has none: each of its"
                f" {self.num_classes} embeddings is a class; leave guidance out"
            )
        return True


def conditioning_of(num_class_embeds: int | None, id2label: Any, learned_guidance: Any = None) -> Conditioning | None:
    """Of a network with so many class embeddings, by ``id2label`` of its ``model_index.json``; None without classes.

    ``id2label`` names the classes by their numbers (keys are text in JSON), as diffusers' DiT pipelines do; of one
    embedding more than it names the last is the null class. Without it every embedding is a class.

    Raises:
        ValueError: ``id2label``, a mapping or None, or ``learned_guidance``, a number or None, is of another kind, or
            not of these embeddings.
    """
    if not isinstance(id2label, Mapping | None):
        raise ValueError("id2label must be an object")
    if learned_guidance is not None and not (type(learned_guidance) in (int, float) and is_scale(learned_guidance)):
        raise ValueError("learned_guidance must be a finite number from 0 on")
    if num_class_embeds is None:
        if id2label or learned_guidance is not None:
            raise ValueError(
                "id2label and learned_guidance are of class-conditional networks: num_class_embeds is not set"
            )
        return None
    if id2label is None:
        return Conditioning(tuple(map(str, range(num_class_embeds))), None, learned_guidance)
    by_number = {str(label): name for label, name in id2label.items()}
    names = tuple(by_number.get(str(label), "") for label in range(len(by_number)))
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("id2label must name the classes 0, 1, 2, ... by texts")
    if num_class_embeds - len(names) not in (0, 1):
        raise ValueError(
            f"id2label names {len(names)} classes for {num_class_embeds} embeddings: as many are needed, or one less"
            " where the last is the null class"
        )
    return Conditioning(names, len(names) if num_class_embeds > len(names) else None, learned_guidance)


def is_scale(value: float) -> bool:
    """Can this be a guidance scale?"""
    return math.isfinite(value) and value >= 0


def labels_of(images: range, turns: Sequence[int], device: torch.device) -> Tensor:
    """Image k of a stream has label ``turns[k % len(turns)]``: int64 (len(images),)."""
    return torch.tensor([turns[k % len(turns)] for k in images], dtype=torch.int64, device=device)


def with_null(labels: Tensor, null: int) -> Tensor:
    """(B,) -> (2 B,): the labels, and the null class for a second pass of each image in the same batch."""
    return torch.cat([labels, torch.full_like(labels, null)])


def guided(both: Tensor, guidance_scale: float) -> Tensor:
    """Predictions of ``with_null`` (2 B, C, H, W) -> null + scale (conditional - null), (B, C, H, W).

    In epsilon that is eq. 6 of Ho and Salimans with scale 1 + w; x_0 and v are linear in epsilon for a given x_t, with
    weights that sum to one here, so that it is the same in all three.
    """
    conditional, null = both.chunk(2)
    return null + guidance_scale * (conditional - null)
