"""What the tests of features, distances and statistics share: a small extractor, images, and features without any."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from ddpm_redistill.evaluation.extractors import Extractor
from ddpm_redistill.evaluation.features import Features

DIM = 12


class Projection(FeatureExtractorBase):
    """A small fixed random network: 4x4 pooled pixels -> DIM features, 5 logits. Keeps the sizes of its batches."""

    def __init__(self, name: str, features_list: list[str]) -> None:
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(48, DIM, generator=generator) / 7, requires_grad=False)
        self.batches: list[int] = []

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "features", "kid": "features", "prc": "features"}[metric]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        self.batches.append(len(images))
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 64 - 2, 4).flatten(1)
        values = torch.relu(pooled @ self.weight)
        return tuple({"features": values, "logits": values[:, :5]}[name] for name in self.features_list)


def extractor(logits: bool = False, **changes: Any) -> Extractor:
    layers = ["features", "logits"] if logits else ["features"]
    made = Extractor(
        name="projection",
        layer="features",
        logits_layer="logits" if logits else None,
        feature_size=DIM,
        resize="none",
        weights="made",
        weights_sha256="0" * 64,
        fid_name="fd_projection",
        kid_name="kid_projection",
        reason="test",
        module=Projection("projection", layers),
    )
    return replace(made, **changes)


def pictures(count: int, seed: int, channels: int = 3) -> Tensor:
    """Smooth random images: uint8 (count, channels, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 3, 3, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear").to(torch.uint8)


def noisy(images: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    return (images + sigma * noise).clamp(0, 255).to(torch.uint8)


def features(count: int, seed: int, shift: float = 0.0, dim: int = DIM) -> Features:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(1)) / dim**0.5
    values = torch.randn(count, dim, generator=generator) @ mix + shift
    return Features(values, None, extractor(feature_size=dim))


class Wrapped(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
