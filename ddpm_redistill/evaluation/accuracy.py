"""How well classifiers name the classes of labelled images, and how alike two of them are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.accuracy import correct_in_top, wilson_interval
from ..errors import UserError

TOPS = (1, 5)


def accuracy_figures(logits: Mapping[str, Tensor], labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The figures of one classifier or several on the same images.

    Args:
        logits: of each classifier by its name, (N, K) for K = ``len(names)``.
        labels: int64 (N,), N > 0.

    Returns:
        ``num_images``, ``classes``; ``networks``, of each name ``classifier_figures``; and of every pair of names
        ``agreements``: ``pair``, ``agreement``, ``agreement_interval``.

    Raises:
        UserError: a classifier with another number of classes.
    """
    for name, each in logits.items():
        if each.shape[1] != len(names):
            raise UserError(
                f"{name} tells {each.shape[1]} classes apart, and the images have {len(names)}: as many are needed"
            )
    found = list(logits)
    pairs = [(one, other) for i, one in enumerate(found) for other in found[i + 1 :]]
    return {
        "num_images": len(labels),
        "classes": list(names),
        "networks": {name: classifier_figures(each, labels, names) for name, each in logits.items()},
        "agreements": [{"pair": list(pair), **agreement(logits[pair[0]], logits[pair[1]])} for pair in pairs],
    }


def classifier_figures(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """``top1`` and, of more than five classes, ``top5``: the shares of the images whose class is among as many first
    ones, each with its 95% interval (Wilson) beside it, as ``top1_interval``; ``confusion``, a row of counts for each
    true class and a column for each predicted one; ``by_class``, in the order of the labels, ``name``, ``num_images``
    and, where there are any, ``top1`` with its interval.

    Args:
        logits: (N, K), K = ``len(names)``.
        labels: int64 (N,), N > 0.
    """
    figures: dict[str, Any] = {}
    for k in TOPS:
        if k == 1 or len(names) > k:
            figures |= _share(f"top{k}", int(correct_in_top(logits, labels, k).sum()), len(labels))
    counts = confusion_counts(logits.argmax(1), labels, len(names))
    figures["confusion"] = counts.tolist()
    figures["by_class"] = []
    for label, name in enumerate(names):
        count = int(counts[label].sum())
        share = _share("top1", int(counts[label, label]), count) if count else {}
        figures["by_class"].append({"name": name, "num_images": count, **share})
    return figures


def confusion_counts(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """int64 (K, K): how many images of class [row] were predicted to be of class [column]."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def agreement(one: Tensor, other: Tensor) -> dict[str, Any]:
    """``agreement``, the share of the images of which two classifiers, logits (N, K) each, predict the same class,
    right or wrong, and its interval.

    Raises:
        UserError: they have different numbers of classes.
    """
    if one.shape[1] != other.shape[1]:
        raise UserError(f"classifiers of {one.shape[1]} and {other.shape[1]} classes cannot be compared")
    return _share("agreement", int((one.argmax(1) == other.argmax(1)).sum()), len(one))


def _share(name: str, right: int, count: int) -> dict[str, Any]:
    return {name: right / count, f"{name}_interval": list(wilson_interval(right, count))}
