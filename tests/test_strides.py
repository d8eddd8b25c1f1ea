"""Strides set in place: the resolution that follows, and which weights and values stay."""

import pytest
import torch
from torch import nn

from ddpm_redistill.pipelines.strides import set_stride

timm_layers = pytest.importorskip("timm.layers")
pool2d_same = pytest.importorskip("timm.layers.pool2d_same")


def layers() -> dict[str, nn.Module]:
    return {
        "3x3": nn.Conv2d(4, 4, 3, 2, 1),
        "7x7": nn.Conv2d(4, 4, 7, 2, 3),
        "1x1": nn.Conv2d(4, 4, 1, 2),
        "dilated": nn.Conv2d(4, 4, 3, 2, 2, dilation=2),
        "grouped 5x5": nn.Conv2d(4, 4, 5, 2, 2, groups=4),
        "patches of 2": nn.Conv2d(4, 4, 2, 2),
        "patches of 4": nn.Conv2d(4, 4, 4, 4),
        "4x4, padded": nn.Conv2d(4, 4, 4, 2, 1),
        "same": timm_layers.Conv2dSame(4, 4, 3, 2),
        "same, even": timm_layers.Conv2dSame(4, 4, 4, 2),
        "standardised": timm_layers.StdConv2d(4, 4, 3, 2, padding=1),
        "max 3": nn.MaxPool2d(3, 2, 1),
        "max 2": nn.MaxPool2d(2, 2),
        "max 3, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
        "max, same": pool2d_same.MaxPool2dSame(3, 2),
        "average 2": nn.AvgPool2d(2, 2),
        "average 2, ceil": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        "average 3": nn.AvgPool2d(3, 2, 1),
    }


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", layers())
def test_resolution(name: str, stride: int) -> None:
    layer = layers()[name]
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    set_stride(layer, stride)
    for size in (32, 64, 224):
        assert layer(torch.randn(1, 4, size, size)).shape == (1, 4, size // stride, size // stride)
    assert before.keys() == layer.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", ["3x3", "7x7", "max 3", "average 3"])
def test_a_stride_only_skips_positions(name: str) -> None:
    torch.manual_seed(0)
    layer, x = layers()[name], torch.randn(1, 4, 32, 32)
    set_stride(layer, 1)
    dense = layer(x)
    set_stride(layer, 4)
    assert torch.allclose(layer(x), dense[..., ::4, ::4], atol=1e-6)


@pytest.mark.parametrize("name", ["max 2", "average 2", "average 2, ceil"])
def test_a_pooling_without_overlap_passes_its_map_on_at_stride_1(name: str) -> None:
    layer, x = layers()[name], torch.randn(1, 4, 8, 8)
    set_stride(layer, 1)
    assert torch.equal(layer(x), x)


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = nn.Conv2d(3, 5, 3, 2, 1)
    set_stride(layer, 8)
    assert layer(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 5, 8, 8)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Linear(2, 2), "Linear is no convolution, pooling or sampler"),
        (nn.MaxPool2d(4, 2, 1), "no padding of this MaxPool2d makes 1 / 1 of a map: kernel 4"),
        (nn.Conv2d(3, 3, (3, 5)), r"\(3, 5\) has two sizes"),
    ],
)
def test_refused(layer: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        set_stride(layer, 1)
