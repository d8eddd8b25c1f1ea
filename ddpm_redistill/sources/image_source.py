"""The one kind of Dataset that every source of images becomes, and how to make it from pixels in memory."""

import copy
import functools
import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import UserError
from .image_files import Decoded, fit, one_line
from .image_survey import Survey
from .image_values import EIGHT, FULL_RANGE, Values


class ImageSource(Dataset[torch.Tensor]):
    """N images as uint8 tensors (C, image_size, image_size), values 0..255, always in the same order.

    `description` is one line for people. `fingerprint` is a sha256 of what is served: for sources held in
    memory of the decoded pixels, for a folder of the relative paths, the file bytes, C, image_size and data_range.
    Picklable, so that loader workers can be forked or spawned.

    `labels`, int64 (N,), is the class of each image and `classes` names the classes, `classes[label]`; both are None
    unless every image has exactly one class. Not to be changed. What is served, and `fingerprint`, do not depend on
    them: `label_fingerprint` is theirs. They belong to what is served when the source is opened: an image of a folder
    that can be read then and not later keeps its label, whichever image takes its place.
    """

    labels: torch.Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __init__(
        self,
        length: int,
        images: Callable[[int], torch.Tensor] | torch.Tensor,
        description: str,
        fingerprint: str,
    ) -> None:
        """images: uint8 (N, C, image_size, image_size), or what makes image i."""
        self._length = length
        self._images = images
        self.description = description
        self.fingerprint = fingerprint

    def with_labels(self, labels: Sequence[int] | np.ndarray | torch.Tensor, classes: Iterable[str]) -> "ImageSource":
        """The same images with the class of each, (N,), and the names of the classes, which `description` counts.

        Raises UserError for a label that is none of the classes, ValueError for another number of labels.
        """
        labels, classes = torch.as_tensor(labels).to(torch.int64), tuple(classes)
        if labels.shape != (self._length,):
            raise ValueError(f"labels of shape {tuple(labels.shape)} for {self._length} images")
        outside = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
        if len(outside):
            i, most = int(outside[0]), len(classes) - 1
            raise UserError(
                f"image {i} has label {int(labels[i])}, not one of 0 to {most}: {self.description}; correct it"
            )
        source = copy.copy(self)
        source.labels, source.classes = labels, classes
        source.description += f", {len(classes):,} class{'' if len(classes) == 1 else 'es'}"
        return source

    @property
    def label_fingerprint(self) -> str | None:
        """A sha256 of the labels and the names of the classes; None without labels."""
        if self.labels is None or self.classes is None:
            return None
        # Lengths first, so that no name can be read as two. Names of folders may hold bytes that are no UTF-8.
        names = [name.encode(errors="surrogatepass") for name in self.classes]
        digest = hashlib.sha256(str((self._length, [len(name) for name in names])).encode())
        digest.update(b"".join(names) + self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def held(self) -> torch.Tensor | None:
        """All images, uint8 (N, C, image_size, image_size), of a source held in memory; not to be changed."""
        return self._images if isinstance(self._images, torch.Tensor) else None

    def subset(self, indices: torch.Tensor) -> "ImageSource":
        """Of these images those at ``indices``, int64 (n,), in that order."""
        served = self._images
        images = served[indices] if isinstance(served, torch.Tensor) else functools.partial(_chosen, served, indices)
        digest = hashlib.sha256(self.fingerprint.encode() + indices.numpy().astype("<i8").tobytes()).hexdigest()
        source = ImageSource(len(indices), images, f"{len(indices):,} of {self.description}", digest)
        source.labels, source.classes = None if self.labels is None else self.labels[indices], self.classes
        return source

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        """uint8 (C, image_size, image_size). Raises UserError naming a file that no longer decodes."""
        i = operator.index(index)
        if not -self._length <= i < self._length:
            raise IndexError(f"image {i} of {self._length}")
        if isinstance(self._images, torch.Tensor):
            # A copy: what is changed in place must not change the source.
            return self._images[i].clone(memory_format=torch.contiguous_format)
        return self._images(i % self._length)


def _chosen(images: Callable[[int], torch.Tensor], indices: torch.Tensor, i: int) -> torch.Tensor:
    return images(int(indices[i]))


def from_tensor(images: torch.Tensor, survey: Survey) -> ImageSource:
    """images: uint8 (N, C, image_size, image_size); survey: of all of them."""
    n, channels = images.shape[:2]
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for image in images:
        digest.update(image.contiguous().numpy())
    survey.warn(n)
    return ImageSource(n, images, survey.describe(n, channels), digest.hexdigest())


def from_reads(read: Callable[[int], Decoded], n: int, name: str, image_size: int, channels: int) -> ImageSource:
    """Keeps the images of read(0), ..., read(n - 1). Raises UserError naming the first that fails."""
    images = torch.empty(n, channels, image_size, image_size, dtype=torch.uint8)
    survey = Survey(name, image_size)
    for i in tqdm(range(n), desc=f"reading {name}", unit="image", delay=1):
        try:
            decoded = read(i)
            images[i] = decoded.pixels
        except Exception as error:  # broken files surface from the data sets as almost any type
            raise UserError(
                f"image {i} of {n:,} of {name} cannot be read ({one_line(error)}); remove or replace it"
            ) from error
        survey.add(decoded.size, decoded.values, decoded.animated)
    return from_tensor(images, survey)


def from_array(
    array: np.ndarray, name: str, image_size: int, channels: int, data_range: float | None = None
) -> ImageSource:
    """array: uint8 (N, H, W) or (N, H, W, C): C is `channels`, or both are 1 or 3. Raises UserError for any other C."""
    array = array[..., None] if array.ndim == 3 else array
    n, height, width, own = array.shape
    if own != channels and not {own, channels} <= {1, 3}:
        raise UserError(f"the images in {name} have {own} channel{'s' * (own != 1)}, and {channels} are needed")
    if (height, width, own) == (image_size, image_size, channels) and data_range in (None, FULL_RANGE[EIGHT]):
        survey = Survey(name, image_size)  # as it is, without a copy
        survey.add((width, height), Values(EIGHT, int(array.min()), int(array.max()), FULL_RANGE[EIGHT]), count=n)
        return from_tensor(torch.from_numpy(array).permute(0, 3, 1, 2), survey)

    def read(i: int) -> Decoded:
        if channels in (1, 3):
            pixels = array[i, :, :, 0] if own == 1 else array[i]
            return fit(Image.fromarray(pixels), image_size, channels, data_range)
        planes = [fit(Image.fromarray(array[i, :, :, c]), image_size, 1, data_range) for c in range(own)]
        values = [plane.values for plane in planes]
        least, most = min(each.least for each in values), max(each.most for each in values)
        joined = torch.cat([plane.pixels for plane in planes])
        return Decoded(joined, (width, height), values[0]._replace(least=least, most=most))

    return from_reads(read, n, name, image_size, channels)


def viewable(images: torch.Tensor) -> torch.Tensor:
    """Of images (N, C, H, W) the channels that a picture can show: of 1 or 3 all, of 2 the first, else the first 3."""
    channels = images.shape[1]
    return images if channels in (1, 3) else images[:, : 1 if channels == 2 else 3]
