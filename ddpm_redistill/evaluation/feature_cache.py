"""Features kept on disk, so that a data set is measured once.

A file is named by a hash of what its features depend on: the images' content, the extractor's name, layer, resize and
weights, and the kind of device, since the last digits are its own. Images are read in any case, to know their content;
what is saved is the network. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from ..files import written_aside
from ..sources.image_files import one_line
from .extractors import Extractor
from .features import CHUNK, Features, extract_features, hash_images
from .tensor_files import sha256_of_tensors

log = logging.getLogger("ddpm_redistill")


def default_cache_dir() -> Path:
    """``features`` in the folder ``DDPM_REDISTILL_CACHE``, else in the user's cache folder: ``XDG_CACHE_HOME`` or
    ``~/.cache``, and there ``ddpm_redistill``."""
    own = os.environ.get("DDPM_REDISTILL_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(own) if own else user / "ddpm_redistill").expanduser() / "features"


def cached_features(
    images: Tensor | Dataset[Tensor], extractor: Extractor, cache_dir: Path | None = None, progress: str | None = None
) -> Features:
    """``extract_features``, from a file in ``cache_dir`` (default :func:`default_cache_dir`) if these very images have
    been measured by this very extractor before; else they are measured and the file is written, 4 N D bytes.

    A file that is damaged, or is not what its name says, is made again, with a line in the log; a folder that cannot be
    written is one line in the log. Raises: :class:`UserError` as ``extract_features``.
    """
    folder = default_cache_dir() if cache_dir is None else cache_dir
    images_sha256 = hash_images(images)
    key = _key(images_sha256, extractor)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    if path.is_file():
        try:
            return _read(path, key, images_sha256, extractor)
        except Exception as error:  # readers fail on unknown bytes in many ways
            log.warning("the kept features %s are made again: %s", path, one_line(error))
    features = extract_features(images, extractor, progress=progress)
    if features.images_sha256 != images_sha256:
        log.warning("features are not kept: the images changed while they were read")
        return features
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = _tensors(features)
        metadata = {"key": key, "sha256": sha256_of_tensors(tensors)}
        with written_aside(path) as aside:
            save_file(tensors, aside, metadata)
    except OSError as error:
        log.warning("features cannot be kept in %s: %s", folder, one_line(error))
    return features


def _key(images_sha256: str, extractor: Extractor) -> str:
    made_by = {**extractor.identity, "logits_layer": extractor.logits_layer, "images_at_once": CHUNK}
    return json.dumps({"images_sha256": images_sha256, **made_by, "device": extractor.device.type})


def _tensors(features: Features) -> dict[str, Tensor]:
    return {"values": features.values} | ({} if features.logits is None else {"logits": features.logits})


def _read(path: Path, key: str, images_sha256: str, extractor: Extractor) -> Features:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("key") != key:
            raise ValueError("the file is of other images or another extractor")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("sha256") != sha256_of_tensors(tensors):
        raise ValueError("its values are not those that were written")
    return Features(tensors["values"], tensors.get("logits"), extractor, images_sha256)
