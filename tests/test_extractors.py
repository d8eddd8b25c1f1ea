"""Which extractor is chosen, what it computes, and how it refuses."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as torch_fidelity_inception
from torch_fidelity.utils import create_feature_extractor

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation import extractors
from ddpm_redistill.evaluation.extractors import EFFICIENTNET, INCEPTION, INCEPTION_FILE, choose_extractor

HAS_DEMO = all(importlib.util.find_spec(name) for name in extractors._DEMO_PACKAGES)
needs_demo = pytest.mark.skipif(not HAS_DEMO, reason="needs the extra demo")


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def inception_state() -> dict[str, torch.Tensor]:
    """Random tensors that fit the Inception network."""

    class Unloaded(torch_fidelity_inception.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_fidelity_inception, "load_state_dict_from_url", lambda *a, **k: {})
        return {key: value.clone() for key, value in Unloaded(INCEPTION, ["2048"]).state_dict().items()}


@needs_demo
def test_efficientnet_is_the_offline_choice_and_says_so() -> None:
    extractor = choose_extractor(None)
    described = json.loads(json.dumps(extractor.to_dict()))
    assert described["name"] == EFFICIENTNET
    assert described["layer"] == "1280"
    assert described["resize"] == "64x64 bilinear antialias"
    assert described["weights_sha256"].startswith("57934424")
    assert (described["fid_name"], described["kid_name"]) == (
        "fd_efficientnet_lite0",
        "kid_efficientnet_lite0",
    )
    assert "--inception_weights" in extractor.reason
    assert not extractor.module.training
    assert not any(parameter.requires_grad for parameter in extractor.module.parameters())


@needs_demo
def test_efficientnet_computes_what_its_package_computes() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reference = EfficientNet.from_pretrained("efficientnet-lite0", str(extractors.efficientnet_weights())).eval()
    with torch.no_grad():
        expected = reference.extract_features((images.float() - 127) / 128).mean((2, 3))
    features, logits = choose_extractor(None)(images)
    assert logits is None
    assert features.shape == (4, 1280)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@needs_demo
@pytest.mark.parametrize("size", [16, 64, 96])
def test_efficientnet_takes_any_image_size(size: int) -> None:
    features, _ = choose_extractor(None)(torch.full((2, 3, size, size), 200, dtype=torch.uint8))
    assert features.shape == (2, 1280)
    assert torch.isfinite(features).all()


@needs_demo
def test_efficientnet_is_registered_in_torch_fidelity() -> None:
    module = create_feature_extractor(EFFICIENTNET, ["1280"], cuda=False, verbose=False)
    assert module.get_name() == EFFICIENTNET
    assert module.get_default_feature_layer_for_metric("fid") == "1280"
    with pytest.raises(ValueError, match="uint8"):
        module(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_inception_from_a_path(suffix: str, tmp_path: Path, inception_state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(inception_state, path)
    else:
        save_file(inception_state, path)
    extractor = choose_extractor(str(path))
    described = extractor.to_dict()
    assert described["name"] == INCEPTION
    assert (described["fid_name"], described["kid_name"]) == ("fid", "kid")
    assert len(described["weights_sha256"]) == 64
    assert "differs from torch-fidelity's" in described["reason"]
    torch.testing.assert_close(extractor.module.fc.weight, inception_state["fc.weight"], rtol=0, atol=0)
    features, logits = extractor(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert features.shape == (1, 2048)
    assert logits is not None
    assert logits.shape == (1, 1008)


def test_inception_from_torch_hubs_cache(empty_hub_cache: Path, inception_state: dict[str, torch.Tensor]) -> None:
    empty_hub_cache.mkdir(parents=True)
    torch.save(inception_state, empty_hub_cache / INCEPTION_FILE)
    extractor = choose_extractor(None)
    assert extractor.name == INCEPTION
    assert "cache" in extractor.reason


def test_missing_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        choose_extractor(str(tmp_path / "absent.pth"))
    assert "\n" not in str(caught.value)


def touch_a_file(path: str) -> nn.Module:
    Path(path).touch()
    return nn.Linear(1, 1)


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return touch_a_file, (self.path,)


@pytest.mark.parametrize("content", ["text", "empty", "module", "hostile", "other tensors", "list"])
def test_a_file_that_is_not_inceptions_weights_is_refused(content: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    if content == "text":
        path.write_text("<html>not found</html>")
    elif content == "empty":
        path.touch()
    else:
        values: dict[str, Any] = {
            "module": nn.Linear(2, 2),
            "hostile": {"weight": Hostile(str(trace))},
            "other tensors": {"weight": torch.zeros(2)},
            "list": [torch.zeros(2)],
        }
        torch.save(values[content], path)
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        choose_extractor(str(path))
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_without_any_extractor_the_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ddpm-redistill\[demo\].*--inception_weights") as caught:
        choose_extractor(None)
    assert "\n" not in str(caught.value)
