"""Labels that mean the same to student, teacher and data: the classes of one evaluation, and the labels of its sets."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Subset

from ..errors import UserError
from ..pipelines.conditioning import labels_of
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..sources.class_labels import conditioned
from ..sources.image_source import ImageSource
from ..sources.teacher import find_model
from .subjects import Subject

log = logging.getLogger("ddpm_redistill")


@dataclass(frozen=True, eq=False)
class SharedClasses:
    """``names``: label i is ``names[i]`` in every set.

    ``labels``: by set ("student", "teacher", "data"), the class of each of its images, int64 (N,); a set that has none
    is not there. ``sampled``: the sets that a network with classes makes: image k has label k mod len(names).
    """

    names: tuple[str, ...]
    labels: dict[str, Tensor]
    sampled: tuple[str, ...]

    @property
    def turns(self) -> tuple[int, ...] | None:
        """The labels that sampled images take in turn; None where no network has classes."""
        return tuple(range(len(self.names))) if self.sampled else None

    @property
    def for_networks(self) -> dict[str, Tensor]:
        """By network with classes, the labels of the data, where it has them."""
        return {name: self.labels["data"] for name in self.sampled if "data" in self.labels}

    @property
    def have_pairs(self) -> bool:
        """Are there labels of the data and of another set?"""
        return "data" in self.labels and len(self.labels) > 1


def shared_classes(
    subjects: Mapping[str, Subject], images: Subset[Tensor] | None, data: str | None, num_images: int
) -> SharedClasses | None:
    """Of models, images made elsewhere, and ``images``, those chosen of the source ``data``; None without any class.

    A model that names no classes is given names here: those of the other model, or of the data. Data, or images made
    elsewhere, whose labels are not of these classes have none, with a line in the log.

    Raises:
        UserError: the classes of two models differ.
    """
    source = None if images is None else images.dataset
    assert source is None or isinstance(source, ImageSource)
    models = {name: subject for name, subject in subjects.items() if subject.conditioning is not None}
    _name_classes(models, source)
    names, ref = _common_names(models)
    elsewhere = {
        name: subject.images
        for name, subject in subjects.items()
        if subject.images is not None and subject.images.labels is not None
    }
    if not models and (not elsewhere or source is None or source.classes is None):
        return None
    if not models:
        assert source is not None
        assert source.classes is not None
        assert data is not None
        names, ref = source.classes, data
    labels = {name: labels_of(range(num_images), range(len(names)), torch.device("cpu")) for name in models}
    for name, found in elsewhere.items():
        aligned = _aligned(found, names, ref)
        labels |= {} if aligned is None else {name: aligned[:num_images]}
    if images is not None and source is not None:
        aligned = _aligned(source, names, ref)
        labels |= {} if aligned is None else {"data": aligned[images.indices]}
    elif data is not None:
        log.warning("figures by class are left out: %s holds statistics, which have no labels", data)
    return SharedClasses(names, labels, tuple(models))


def _name_classes(models: Mapping[str, Subject], source: ImageSource | None) -> None:
    """A network that names no classes was trained on numbers: they are another one's where it has as many embeddings,
    or those of the data, whose number says whether there is a null class."""
    pipelines: dict[str, RedDDPMPipeline] = {name: m.pipeline for name, m in models.items() if m.pipeline is not None}
    unnamed = {name for name in pipelines if find_model(models[name].ref).id2label is None}
    for name in unnamed:
        pipeline, embeddings = pipelines[name], pipelines[name].unet.config.num_class_embeds
        named = [pipelines[other] for other in pipelines.keys() - unnamed]
        found = next((p.conditioning for p in named if p.unet.config.num_class_embeds == embeddings), None)
        if found is None and source is not None and source.labels is not None:
            try:
                found = conditioned(source, embeddings, None, models[name].ref)[1]
            except UserError:  # other data: the classes keep their numbers for names
                continue
        if found is not None and pipeline.conditioning is not None:
            pipeline.conditioning = replace(pipeline.conditioning, names=found.names, null=found.null)


def _common_names(models: Mapping[str, Subject]) -> tuple[tuple[str, ...], str]:
    """And the model whose they are. Raises UserError when they differ."""
    found = [(subject.conditioning.names, subject.ref) for subject in models.values() if subject.conditioning]
    for names, ref in found[1:]:
        if names != found[0][0]:
            raise UserError(
                f"{found[0][1]} and {ref} have different classes ({_some(found[0][0])}; {_some(names)}), so that a"
                " label does not mean the same to both: compare each with data alone"
            )
    return found[0] if found else ((), "")


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _aligned(images: ImageSource, names: tuple[str, ...], ref: str) -> Tensor | None:
    try:
        return conditioned(images, len(names), {str(label): name for label, name in enumerate(names)}, ref)[0]
    except UserError as error:  # all else compares
        log.warning("figures by class are left out: %s", error)
        return None
