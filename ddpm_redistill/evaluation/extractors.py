"""Feature extractors that distances between image sets are measured in.

- Inception: torch-fidelity's ``inception-v3-compat`` (the TensorFlow network of 2015-12-05 that published FID, KID and
  Inception Score numbers rest on); its 91 MB of weights come from a path or from torch hub's cache.
- EfficientNet-lite0 travels inside two small packages (extra ``demo``), so it works with no network; its numbers are
  called ``fd_efficientnet_lite0`` and ``kid_efficientnet_lite0``, never FID.
- One's own: ``module:Class``, a torch-fidelity ``FeatureExtractorBase``; its numbers are called ``fd_class``.

Numbers compare only with numbers of the same extractor at the same number of images. Weight files are only read as
tensors (safetensors, or ``weights_only=True``), never as arbitrary pickles.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from ..errors import UserError
from ..sources.image_files import one_line
from ..sources.teacher import sha256_of
from .efficientnet import EFFICIENTNET, EFFICIENTNET_PACKAGES, EfficientNetLite0, efficientnet_weights
from .tensor_files import read_tensors, sha256_of_tensors

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[-1]
# torch hub's convention: a file's name ends in the first digits of its sha256
INCEPTION_SHA256_PREFIX = INCEPTION_FILE.removesuffix(".pth").rsplit("-", 1)[-1]


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature network and the names its numbers go by.

    ``layer`` gives the features of the Frechet distance and KID, ``logits_layer`` (Inception only) the class scores of
    the Inception Score. ``fid_name`` and ``kid_name`` are the keys results are reported under. ``reason`` says in one
    sentence why this extractor was chosen.
    """

    name: str
    layer: str
    logits_layer: str | None
    feature_size: int
    resize: str
    weights: str
    weights_sha256: str
    fid_name: str
    kid_name: str
    reason: str
    module: FeatureExtractorBase

    def to_dict(self) -> dict[str, Any]:
        """Everything but the network, as JSON values (strings, one integer, ``logits_layer`` may be None)."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "module"}

    @property
    def identity(self) -> dict[str, str]:
        """What features depend on: those of two extractors compare only where this is equal."""
        return {key: getattr(self, key) for key in ("name", "layer", "resize", "weights_sha256")}

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Extractor:
        """Move the network (in place) and return self."""
        self.module.to(device)
        return self

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (N, 3, H, W) -> (features float32 (N, feature_size), logits float32 (N, 1008) or None), on the
        network's device, without gradients."""
        with torch.inference_mode(), full_float32():
            values = self.module.convert_features_tuple_to_dict(self.module(images.to(self.device)))
        return values[self.layer], None if self.logits_layer is None else values[self.logits_layer]


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 with all of its 24 bits on a GPU too, where convolutions as a rule round their inputs to 11 bits (TF32):
    a distance would differ from that of a CPU in its fourth digit."""
    settings: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in settings]
    try:
        for each in settings:
            each.fp32_precision = "ieee"
        yield
    finally:
        for each, precision in zip(settings, before, strict=True):
            each.fp32_precision = precision


def choose_extractor(inception_weights: str | None = None, extractor: str | None = None) -> Extractor:
    """The extractor asked for, or the best that is at hand, on the GPU where there is one; the internet is never used.

    ``extractor``: one's own, as :func:`own_extractor`. Else Inception when ``inception_weights`` names its file
    (torch-fidelity's ``.pth``, or the same tensors as ``.safetensors``) or torch hub's cache already holds
    torch-fidelity's; otherwise EfficientNet-lite0. The result is in eval mode.

    Raises: :class:`UserError` when both are given; when the given file is missing or does not hold Inception's weights;
    as :func:`own_extractor`; and when neither Inception nor the packages of the extra ``demo`` are at hand.
    """
    return _chosen(inception_weights, extractor).to("cuda" if torch.cuda.is_available() else "cpu")


def _chosen(inception_weights: str | None, extractor: str | None) -> Extractor:
    if extractor is not None:
        if inception_weights is not None:
            raise UserError("give --extractor or --inception_weights, not both: distances are of one extractor")
        return own_extractor(extractor)
    if inception_weights is not None:
        return _inception(Path(inception_weights).expanduser(), "its weights were given")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if cached.is_file():
        return _inception(cached, "its weights are in torch hub's cache")
    how = f"download {URL_INCEPTION_V3} and pass its path as --inception_weights"
    absent = [p for p in EFFICIENTNET_PACKAGES if importlib.util.find_spec(p) is None]
    if absent:
        raise UserError(
            "no feature extractor is at hand: install 'ddpm-redistill[demo]' "
            f"(missing: {', '.join(absent)}) for EfficientNet-lite0, or {how} for FID"
        )
    weights = efficientnet_weights()
    return Extractor(
        name=EFFICIENTNET,
        layer="1280",
        logits_layer=None,
        feature_size=1280,
        resize="64x64 bilinear antialias",
        weights=weights.name,
        weights_sha256=sha256_of(weights),
        fid_name="fd_efficientnet_lite0",
        kid_name="kid_efficientnet_lite0",
        reason=f"EfficientNet-lite0: no Inception weights were given or cached (for FID: {how})",
        module=EfficientNetLite0(EFFICIENTNET, ["1280"]),
    )


def own_extractor(ref: str) -> Extractor:
    """``module:Class``, a subclass of torch-fidelity's ``FeatureExtractorBase`` that Python can import: importing it
    runs its code. It is made as ``Class("module:Class", [layer])`` with its own default layer for FID, which must map
    uint8 (N, 3, H, W) of any size to float (N, D). Its numbers are ``fd_class`` and ``kid_class``, in lower case.

    It is known by its reference, layer, the sha256 of its state dict, and that of its module's source.

    Raises: :class:`UserError` when it cannot be imported, is no such class, has no such layer, or gives other shapes.
    """
    found = _import_class(ref)
    try:
        layer = found.get_default_feature_layer_for_metric("fid")
        provided = found.get_provided_features_list()
    except Exception as error:
        raise UserError(f"extractor {ref} names no default layer for the metric 'fid': {one_line(error)}") from error
    if layer not in provided:
        raise UserError(f"extractor {ref} has no layer {layer!r}, its default for the metric 'fid': only {provided}")
    try:
        network = found(ref, [layer]).requires_grad_(False).eval()
        with torch.inference_mode():
            values = network.convert_features_tuple_to_dict(network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)))
        shape = tuple(values[layer].shape)
    except Exception as error:
        raise UserError(f"extractor {ref} cannot be used: {type(error).__name__}: {one_line(error)}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise UserError(f"extractor {ref}: layer {layer} of 2 images has shape {shape}, not (2, D)")
    source = getattr(sys.modules[found.__module__], "__file__", None)
    return Extractor(
        name=ref,
        layer=layer,
        logits_layer=None,
        feature_size=shape[1],
        resize=f"its own, source {sha256_of(Path(source))[:16]}" if source else "its own",
        weights="state dict",
        weights_sha256=sha256_of_tensors(network.state_dict()),
        fid_name=f"fd_{found.__name__.lower()}",
        kid_name=f"kid_{found.__name__.lower()}",
        reason=f"{ref}: it was asked for",
        module=network,
    )


def _import_class(ref: str) -> Any:
    module_name, _, class_name = ref.partition(":")
    if not module_name or not class_name.isidentifier():
        raise UserError(f"extractor {ref!r} is not of the form module:Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a person's module fails in any way it likes
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"extractor {ref}: cannot import {module_name} ({reason}); is it on PYTHONPATH?") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, FeatureExtractorBase):
        what = "is no subclass of torch-fidelity's FeatureExtractorBase" if found is not None else "is not in it"
        raise UserError(f"extractor {ref}: {class_name} {what}")
    return found


def _inception(path: Path, why: str) -> Extractor:
    state = read_tensors(path)
    # torch-fidelity unpickles whatever file it is given. What it sees here are bytes written from checked tensors.
    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    try:
        module = FeatureExtractorInceptionV3(
            INCEPTION, ["2048", "logits_unbiased"], feature_extractor_weights_path=checked
        )
    except RuntimeError as error:
        raise UserError(f"weights file {str(path)!r} does not fit torch-fidelity's Inception network") from error
    sha256 = sha256_of(path)
    reason = f"Inception: {why}"
    if not sha256.startswith(INCEPTION_SHA256_PREFIX):
        reason += f"; the file differs from torch-fidelity's {INCEPTION_FILE}: not comparable with published FID"
    return Extractor(
        name=INCEPTION,
        layer="2048",
        logits_layer="logits_unbiased",
        feature_size=2048,
        resize="299x299 bilinear as in TensorFlow 1.x",
        weights=path.name,
        weights_sha256=sha256,
        fid_name="fid",
        kid_name="kid",
        reason=reason,
        module=module,
    )
