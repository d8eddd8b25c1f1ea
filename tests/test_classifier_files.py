"""A classifier's folder: saved, opened, in one file of weights or in shards, and refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ddpm_redistill.errors import UserError
from ddpm_redistill.families.classifier_config import ClassifierConfig
from ddpm_redistill.families.classifier_files import build, find_config, load_classifier, refers, save_classifier
from ddpm_redistill.sources.weights import filled

timm = pytest.importorskip("timm")


def saved(folder: Path) -> ClassifierConfig:
    config = find_config("wrn:10-1", image_size=8)
    save_classifier(build(config), config, folder)
    return config


def assert_state(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = network.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(value, own[name]) for name, value in state.items())


@pytest.mark.parametrize("ref", ["wrn:10-1", "timm:test_resnet"])
def test_saved_and_loaded(ref: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = find_config(ref, image_size=32, num_classes=7, in_channels=1)
    network = build(config)
    save_classifier(network, config, tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]
    folder = str(tmp_path / "folder")
    assert refers(folder)
    opened, told = load_classifier(folder)
    assert told == config == find_config(folder)
    assert opened.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in opened.state_dict().items())
    x = torch.randn(2, 1, 32, 32)
    assert opened(x).shape == (2, 7)
    assert torch.equal(opened(x), network(x))
    with pytest.raises(UserError, match="has num_classes 7, and 10 are needed"):
        find_config(folder, num_classes=10)


def test_a_folder_as_timm_saves_it_for_the_hub(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=5)
    of_weights = {"input_size": [3, 160, 160], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "tag": "r160_in1k"}
    told = {"architecture": "test_resnet", "num_classes": 5, "num_features": 512, "pretrained_cfg": of_weights}
    (tmp_path / "config.json").write_text(json.dumps(told))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    opened, config = load_classifier(str(tmp_path))
    assert (config.architecture, config.image_size, config.num_classes) == ("timm:test_resnet", 160, 5)
    assert torch.equal(opened.state_dict()["fc.weight"], network.state_dict()["fc.weight"])


def test_weights_in_shards(tmp_path: Path) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    halves = {f"model-{half}.safetensors": sorted(state)[half::2] for half in (0, 1)}
    for file, names in halves.items():
        save_file({name: state[name] for name in names}, tmp_path / file)
    shards = {name: file for file, names in halves.items() for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert_state(load_classifier(str(tmp_path))[0], state)
    (tmp_path / "model-1.safetensors").unlink()
    words = "has its weights in shards, 2 by its index, and model-1.safetensors is missing in "
    with pytest.raises(UserError, match=words):
        load_classifier(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {**shards, "x": "../x.safetensors"}}))
    with pytest.raises(UserError, match=r"names '\.\./x\.safetensors', a path out of the model's folder"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_weights_of_a_wrapped_network(prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As torch.compile and DistributedDataParallel name them."""
    saved(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({prefix + name: value for name, value in state.items()}, tmp_path / "model.safetensors")
    with caplog.at_level("INFO"):
        assert_state(load_classifier(str(tmp_path))[0], state)
    assert f"the names of all its tensors begin with {prefix}, which is left out" in caplog.text
    some = {prefix + name if name.startswith("group") else name: value for name, value in state.items()}
    save_file(some, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"tensors differ, first group1\."):
        load_classifier(str(tmp_path))


def test_a_network_whose_own_names_begin_so(tmp_path: Path) -> None:
    """What is no wrapper's prefix stays, and buffers that are not saved have their values."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)

    network = Wrapped()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    opened = filled("it", Wrapped, (tmp_path / "model.safetensors",))
    assert_state(opened, network.state_dict())
    assert opened.scale == 3.0
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_whole_numbers(tmp_path: Path) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: value.long() for name, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"tensors differ, first .*, int64 for floating point"):
        load_classifier(str(tmp_path))


def test_weights_of_another_network(tmp_path: Path) -> None:
    config = saved(tmp_path)
    told = {**config.to_dict(), "architecture": "wrn:16-8"}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"are not of its config: it tells of [\d,]+ values, they are "):
        load_classifier(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "num_classes": 9}))
    differ = r"2 tensors differ, first classifier\.bias, \[10\] for \[9\]"
    with pytest.raises(UserError, match=rf"are not of its config: {differ}"):
        load_classifier(str(tmp_path))


def test_damaged_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"the weights of .* cannot be loaded: "):
        load_classifier(str(tmp_path))


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    config = find_config("wrn:10-1", image_size=8)
    network = build(config)
    nn.init.constant_(network.classifier.bias, float("nan"))  # type: ignore[union-attr, arg-type]
    save_classifier(network, config, tmp_path)
    with pytest.raises(UserError, match=r"not finite, first in classifier\.bias"):
        load_classifier(str(tmp_path))
