"""The labels of images in the numbers of a network's class embeddings."""

from collections.abc import Mapping

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
    numbers = {name: label for label, name in enumerate(conditioning.names)}
    if all(name in numbers for name in classes):
        return torch.tensor([numbers[name] for name in classes])[labels], conditioning
    are_numbers = classes == tuple(str(label) for label in range(len(classes)))
    theirs_are = conditioning.names == tuple(str(label) for label in range(conditioning.num_classes))
    if len(classes) > conditioning.num_classes or not (are_numbers or (theirs_are and len(classes) == len(numbers))):
        stranger = next(name for name in classes if name not in numbers)
        known = ", ".join(conditioning.names[:5]) + (", ..." if conditioning.num_classes > 5 else "")
        raise UserError(
            f"{images.description}: class {stranger!r} is none of the {conditioning.num_classes} of {ref} ({known}):"
            " give the classes the names that it knows"
        )
    return labels, conditioning


def _conditioning(num_class_embeds: int, id2label: Mapping[str, str]) -> Conditioning:
    conditioning = conditioning_of(num_class_embeds, id2label)
    assert conditioning is not None
    return conditioning
