"""The family of classifiers: recognised, opened, described by what they run, saved, and refused in one line."""

import importlib
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub.hf_api
import pytest
import torch
from torch import nn

from ddpm_redistill.core.strided_layers import strided_rows
from ddpm_redistill.errors import UserError
from ddpm_redistill.families.classifier import refers, resampling_table
from ddpm_redistill.families.classifier_config import ClassifierConfig, config_from_dict
from ddpm_redistill.families.classifier_files import (
    build_on_meta,
    find_config,
    load_classifier,
)
from ddpm_redistill.pipelines.red_block import RedAround, REDBlock
from ddpm_redistill.pipelines.strides import set_stride

timm = pytest.importorskip("timm")


def rows_of(ref: str, **asked: Any) -> list:
    return resampling_table(find_config(ref, **asked).to_dict())


def example_input(config: ClassifierConfig) -> torch.Tensor:
    return torch.zeros(1, config.in_channels, config.image_size, config.image_size, device="meta")


STAGES = [f"layer{level}.0" for level in (2, 3, 4)]
TABLES: list[tuple[str, list[int], list[str], bool]] = [
    # ref, strides, paths, is the second a pool
    ("timm:resnet18", [2] * 5, ["conv1", "maxpool", *STAGES], True),
    ("timm:resnet50", [2] * 5, ["conv1", "maxpool", *STAGES], True),
    ("timm:resnet50d", [2] * 5, ["conv1.0", "maxpool", *STAGES], True),
    ("timm:resnext50_32x4d", [2] * 5, ["conv1", "maxpool", *STAGES], True),
    ("timm:mobilenetv2_100", [2] * 5, ["conv_stem", *(f"blocks.{i}.0" for i in (1, 2, 3, 5))], False),
    ("timm:mobilenetv3_small_100", [2] * 5, ["conv_stem", *(f"blocks.{i}.0" for i in (0, 1, 2, 4))], False),
    ("timm:efficientnet_lite0", [2] * 5, ["conv_stem", *(f"blocks.{i}.0" for i in (1, 2, 3, 5))], False),
    ("timm:convnext_atto", [4, 2, 2, 2], ["stem.0", *(f"stages.{i}.downsample" for i in (1, 2, 3))], False),
    ("timm:repvgg_a0", [2] * 5, ["stem", *(f"stages.{i}.0" for i in range(4))], False),
    ("timm:regnetx_002", [2] * 5, ["stem.conv", *(f"s{i}.b1" for i in (1, 2, 3, 4))], False),
    ("timm:vgg11_bn", [1, 2, 2, 2, 2, 2], [f"features.{i}" for i in (0, 3, 7, 14, 21, 28)], True),
    (
        "timm:densenet121",
        [2] * 5,
        ["features.conv0", "features.pool0", *(f"features.transition{i}" for i in (1, 2, 3))],
        True,
    ),
    ("wrn:22-1", [1, 2, 2], ["conv1", "group2.0", "group3.0"], False),
]


@pytest.mark.parametrize(("ref", "strides", "paths", "pool"), TABLES, ids=[table[0] for table in TABLES])
def test_rows(ref: str, strides: list[int], paths: list[str], pool: bool) -> None:
    rows = rows_of(ref)
    assert [row.stride for row in rows] == strides
    assert [row.path for row in rows] == [row.reads for row in rows] == paths
    assert [row.kind for row in rows] == ["stem", "pool" if pool else "down", *["down"] * (len(rows) - 2)]
    assert rows[0].resolution[0] == find_config(ref).image_size
    assert all(before.resolution[1] == after.resolution[0] for before, after in pairwise(rows))
    assert all(row.resolution[0] == row.stride * row.resolution[1] for row in rows)
    network = build_on_meta(find_config(ref))
    leaves = {path: module for path, module in network.named_modules() if not list(module.children())}
    strided = {path for path, module in leaves.items() if getattr(module, "stride", 1) in (2, (2, 2), (4, 4))}
    assert strided == {path for row in rows if row.stride > 1 for path in row.layers}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("ref", [table[0] for table in TABLES])
def test_strides_moved_to_the_stem(ref: str) -> None:
    config = find_config(ref, num_classes=10)
    network = build_on_meta(config)
    rows = resampling_table(config.to_dict())
    moved = [row for row in rows if row.kind == "pool"] + [row for row in reversed(rows) if row.kind == "down"]
    for row, stride in ((rows[0], 4 * rows[0].stride), (moved[0], 1), (moved[1], 1)):
        for path in row.layers:
            set_stride(network.get_submodule(path), stride)
    student = strided_rows(network, example_input(config))
    kept = [row for row in rows[1:] if row not in moved[:2]]
    assert [row.stride for row in student] == [4 * rows[0].stride, *(row.stride for row in kept)]
    assert [row.path for row in student] == [rows[0].path, *(row.path for row in kept)]
    assert student[-1].resolution[1] == rows[-1].resolution[1]
    assert network(example_input(config)).shape == (1, 10)


def test_what_is_coupled() -> None:
    def layers(ref: str) -> list[tuple[str, ...]]:
        return [row.layers for row in rows_of(ref)]

    assert layers("timm:resnet18")[2] == ("layer2.0.conv1", "layer2.0.downsample.0")
    assert layers("timm:resnet50")[2] == ("layer2.0.conv2", "layer2.0.downsample.0")
    assert layers("timm:resnet50d")[2] == ("layer2.0.conv2", "layer2.0.downsample.0")  # an average pooling
    assert layers("timm:mobilenetv2_100")[1] == ("blocks.1.0.conv_dw",)
    assert layers("timm:repvgg_a0")[0] == ("stem.conv_kxk.conv", "stem.conv_1x1.conv")  # the largest kernel first
    assert layers("timm:regnetx_002")[1] == ("s1.b1.conv2.conv", "s1.b1.downsample.conv")
    assert layers("wrn:22-1")[1] == ("group2.0.conv1", "group2.0.shortcut")


def test_channels_and_resolutions() -> None:
    rows = rows_of("timm:resnet18", image_size=128)
    assert [row.channels for row in rows] == [(3, 64), (64, 64), (64, 128), (128, 256), (256, 512)]
    assert [row.resolution for row in rows] == [(128, 64), (64, 32), (32, 16), (16, 8), (8, 4)]


def test_rows_of_a_network_with_red_blocks() -> None:
    config = find_config("timm:resnet18")
    network = build_on_meta(config)
    for path, before, after in (("conv1", None, 64), ("layer2.0", 64, 128), ("layer3.0", 128, 256)):
        around = RedAround(network.get_submodule(path))
        around.red_in = REDBlock(before) if before else around.red_in
        around.red_out = REDBlock(after)
        network.set_submodule(path, around.to("meta").eval())
    rows = strided_rows(network, example_input(config))
    assert [row.path for row in rows] == ["conv1", "maxpool", *STAGES]
    assert [row.reads for row in rows] == ["conv1", "maxpool", "layer2.0.layer", "layer3.0.layer", "layer4.0"]
    assert [row.kind for row in rows][1] == "pool"
    assert rows[2].layers == ("layer2.0.layer.conv1", "layer2.0.layer.downsample.0")


class Branches(nn.Module):
    """Two ways down that meet in the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(c, 4, 3, s, 1) for c, s in ((3, 1), (4, 2), (4, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return (self.left(x) + self.right(x)).mean((2, 3))


class Shared(Branches):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(self.left(self.stem(x))).mean((2, 3))


class Scaled(Branches):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * 2)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Branches(), "left and right stride side by side, and no block holds just them"),
        (Shared(), "left strides, and runs more than once"),
        (Scaled(), "no convolution of it reads the image itself"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, (2, 1), 1)), r"0 has stride \(2, 1\)"),
    ],
)
def test_networks_that_are_no_chain(network: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strided_rows(network.eval(), torch.zeros(1, 3, 8, 8))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("ref", "asked", "words"),
    [
        ("timm:resnet19", {}, "timm has no network resnet19: near it are timm:resnet1"),
        ("timm:qqqqqqqq", {}, "timm has no network qqqqqqqq: timm.list_models() has all names"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", {}, "timm has no network hf-hub:timm/resnet18.a1_in1k"),
        ("timm:resnet18.nope", {}, "there is no timm:resnet18.nope: "),
        ("wrn:20-1", {}, "wrn:20-1 is no wide residual network: give wrn:DEPTH-WIDTH"),
        ("wrn:16", {}, "wrn:16 is no wide residual network"),
        (
            "timm:resnet18",
            {"image_size": 16},
            "timm:resnet18 cannot be planned: on images of 16 pixels layer4.0.conv1 of stride 2 makes 1 pixels a side"
            " of 1: choose an image size that its strides divide",
        ),
        ("timm:resnet18", {"image_size": 100}, "layer2.0.conv1 of stride 2 makes 13 pixels a side of 25"),
        ("timm:vgg11_bn", {"image_size": 8}, "timm:vgg11_bn does not run on images of 8 pixels: "),
        ("timm:vit_tiny_patch16_224", {}, "no convolution and no pooling strides behind patch_embed.proj"),
        ("timm:resnetblur50", {}, "maxpool.1 strides by a BlurPool2d, which no edit changes"),
        ("timm:inception_v3", {"image_size": 304}, "makes 151 pixels a side of 304: its padding loses some"),
        ("timm:hrnet_w18_small", {}, "stride side by side, and no block holds just them"),
        ("timm:crossvit_9_240", {}, "its layers make no chain"),
    ],
)
def test_refused(ref: str, asked: dict[str, int], words: str) -> None:
    with pytest.raises(UserError) as error:
        rows_of(ref, **asked)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_defaults() -> None:
    config = find_config("timm:resnet18")
    assert (config.num_classes, config.in_channels, config.image_size) == (1000, 3, 224)
    assert config.mean == (0.485, 0.456, 0.406)
    assert find_config("timm:resnet18", in_channels=1).mean == (0.5,)
    assert sum(weight.numel() for weight in build_on_meta(find_config("wrn:22-1")).parameters()) == 272_282


def test_arguments_reach_timm(tmp_path: Path) -> None:
    config = config_from_dict({**find_config("timm:resnet50").to_dict(), "arguments": {"layers": [1, 1, 1, 1]}}, "it")
    assert len(build_on_meta(config).layer3) == 1  # type: ignore[arg-type]
    for arguments in ({"layers": 5}, {"no_such": 1}):
        told = {**config.to_dict(), "arguments": arguments}
        with pytest.raises(UserError, match="timm cannot build timm:resnet50: ") as error:
            build_on_meta(config_from_dict(told, "it"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "os.system"}, "has architecture 'os.system', which must be timm:NAME or wrn:DEPTH-WIDTH"),
        ({"architecture": "timm:resnet18 "}, "which must be timm:NAME"),
        ({"num_classes": 10**9}, "has num_classes 1000000000: whole numbers from 1 to 65536"),
        ({"image_size": True}, "has image_size True: whole numbers"),
        ({"mean": [0.5]}, "has mean [0.5]: give a number for each of its channels"),
        ({"std": [0.5, 0, 0.5]}, "has std [0.5, 0, 0.5]: give a number above 0 for each"),
        ({"arguments": {"checkpoint_path": "/etc/passwd"}}, "has checkpoint_path among its arguments"),
        ({"arguments": {"pretrained": True}}, "has pretrained among its arguments"),
        ({"arguments": {"layers": [10**9] * 4}}, "has arguments {'layers': "),
        ({"arguments": {"a": {"b": 1}}}, "has arguments {'a': "),
        ({"code": "x"}, "has code: a classifier's config has architecture, "),
    ],
)
def test_a_strangers_config(change: dict[str, Any], words: str) -> None:
    told = {**find_config("wrn:10-1").to_dict(), **change}
    with pytest.raises(UserError) as error:
        config_from_dict(told, "folder/config.json")
    assert str(error.value).startswith("folder/config.json has ")
    assert words in str(error.value)


def test_what_is_recognised(tmp_path: Path) -> None:
    assert refers("timm:resnet18")
    assert refers("wrn:16-2")
    for ref in ("builtin:digits", "google/ddpm-cifar10-32", str(tmp_path)):
        assert not refers(ref)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not refers(str(tmp_path))


def test_published_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=r"on the hub as timm/resnet18\.a1_in1k, which cannot be reached: ") as error:
        load_classifier("timm:resnet18")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="wrn:16-2 has no published weights"):
        load_classifier("wrn:16-2")


def test_published_weights_that_are_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.file_exists", lambda *_: False)
    with pytest.raises(UserError, match="are pickled files alone"):
        load_classifier("timm:resnet18")
    with pytest.raises(UserError, match="has no published weights that are safetensors"):
        load_classifier("timm:legacy_senet154")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    importlib.reload(sys.modules[find_config.__module__])  # imports without it
    with pytest.raises(UserError, match=r'timm:resnet18 needs .* pip install "ddpm-redistill\[classifiers\]"'):
        find_config("timm:resnet18")
    assert build_on_meta(find_config("wrn:10-1")) is not None
