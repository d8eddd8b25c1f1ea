"""The labels of images in the numbers of a network's class embeddings."""

from collections.abc import Mapping, Sequence

import torch

from ..errors import UserError
from ..pipelines.conditioning import Conditioning, conditioning_of
from .image_source import ImageSource


def labels_of_source(images: ImageSource, what: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Labels int64 (N,) and names of the classes. ``what`` needs them.

    Raises:
        UserError: the images have none.
    """
    if images.labels is None or images.classes is None:
        raise UserError(
            f"{what}, and {images.description}, have no labels: give a folder with a folder for each class, an .npz"
            " with an array labels, or a data set that has one class for each image"
        )
    return images.labels, images.classes


def conditioned(
    images: ImageSource, num_class_embeds: int, id2label: Mapping[str, str] | None, ref: str
) -> tuple[torch.Tensor, Conditioning]:
    """Labels int64 (N,) in the numbers of the network of ``ref``, and its classes.

    A network that names its classes (``id2label``) has the images' found by their names; by their numbers where the
    images' classes are numbers, or both have as many. One that does not has those of the images, in their order, and a
    null class if it has one embedding more.

    Raises:
        UserError: there are no labels, or classes that are not the network's.
    """
    labels, classes = labels_of_source(images, f"{ref} is class-conditional")
    if id2label is None:
        if num_class_embeds - len(classes) not in (0, 1):
            raise UserError(
                f"{ref} has {num_class_embeds} class embeddings and names no classes, and {images.description} has"
                f" {len(classes)}: as many are needed, or one less where its last embedding is a null class"
            )
        names = {str(label): name for label, name in enumerate(classes)}
        return labels, _conditioning(num_class_embeds, names)
    conditioning = _conditioning(num_class_embeds, id2label)
    return numbered(images, conditioning.names, ref), conditioning


def numbered(images: ImageSource, names: Sequence[str], ref: str) -> torch.Tensor:
    """Labels int64 (N,) in the numbers of ``ref``, whose classes have ``names``: found by their names, or by their
    numbers where the images' classes are numbers or both have as many and those of ``ref`` are numbers.

    Raises:
        UserError: there are no labels, or classes that are none of ``ref``.
    """
    labels, classes = labels_of_source(images, f"{ref} has classes")
    numbers = {name: label for label, name in enumerate(names)}
    if all(name in numbers for name in classes):
        return torch.tensor([numbers[name] for name in classes])[labels]
    are_numbers = classes == tuple(str(label) for label in range(len(classes)))
    theirs_are = tuple(names) == tuple(str(label) for label in range(len(names)))
    if len(classes) > len(names) or not (are_numbers or (theirs_are and len(classes) == len(names))):
        stranger = next(name for name in classes if name not in numbers)
        known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(
            f"{images.description}: class {stranger!r} is none of the {len(names)} of {ref} ({known}):"
            " give the classes the names that it knows"
        )
    return labels


def labels_of_classifier(
    images: ImageSource, num_classes: int, names: Sequence[str] | None, ref: str
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Labels int64 (N,) in the numbers of the classifier of ``ref``, and the names of its classes: ``names``, or where
    it has none those of the images, of which it then needs as many as it has outputs.

    Raises:
        UserError: there are no labels, or classes that are not the network's.
    """
    if names is not None:
        return numbered(images, names, ref), tuple(names)
    labels, classes = labels_of_source(images, f"{ref} is a classifier")
    if len(classes) != num_classes:
        raise UserError(
            f"{ref} tells {num_classes} classes apart and names none, and {images.description} has {len(classes)}: as"
            " many are needed"
        )
    return labels, classes


def _conditioning(num_class_embeds: int, id2label: Mapping[str, str]) -> Conditioning:
    conditioning = conditioning_of(num_class_embeds, id2label)
    assert conditioning is not None
    return conditioning
