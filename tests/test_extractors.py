"""Which extractor is chosen, what it computes, and how it refuses."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_helpers import pictures
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as torch_fidelity_inception
from torch_fidelity.utils import create_feature_extractor

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation import extractors
from ddpm_redistill.evaluation.efficientnet import EFFICIENTNET, EFFICIENTNET_PACKAGES, efficientnet_weights
from ddpm_redistill.evaluation.extractors import INCEPTION, INCEPTION_FILE, choose_extractor
from ddpm_redistill.evaluation.metrics import compare, extract_features
from ddpm_redistill.evaluation.reference import open_image_set

HAS_DEMO = all(importlib.util.find_spec(name) for name in EFFICIENTNET_PACKAGES)
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
@pytest.mark.parametrize("size", [64, 96])
def test_efficientnet_computes_what_its_package_computes(size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reference = EfficientNet.from_pretrained("efficientnet-lite0", str(efficientnet_weights())).eval()
    with torch.no_grad():
        resized = nn.functional.interpolate(images.float(), (64, 64), mode="bilinear", antialias=True)
        expected = reference.extract_features((resized - 127) / 128).mean((2, 3))
    features, logits = choose_extractor(None).to("cpu")(images)
    assert logits is None
    assert features.shape == (4, 1280)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@needs_demo
def test_it_runs_on_the_gpu_where_there_is_one() -> None:
    assert choose_extractor(None).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@needs_demo
def test_it_runs_in_full_float32_and_leaves_the_precision_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def precisions() -> tuple[str, str]:
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    before, seen, network = precisions(), [], choose_extractor(None)
    assert before != ("ieee", "ieee")
    network.module.register_forward_pre_hook(lambda *_: seen.append(precisions()))
    network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    monkeypatch.setattr(type(network.module), "forward", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert seen == [("ieee", "ieee")] * 2
    assert precisions() == before


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
    torch.testing.assert_close(extractor.module.fc.weight.cpu(), inception_state["fc.weight"], rtol=0, atol=0)
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


# --- one's own extractor

OWN = """
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

class Mean(FeatureExtractorBase):
    def __init__(self, name, features_list):
        super().__init__(name, features_list)
        self.register_buffer("scale", torch.tensor([SCALE]))

    @staticmethod
    def get_provided_features_list():
        return "mean", "all"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"fid": "LAYER"}[metric]

    def forward(self, images):
        return (self.scale * images.float()OUT,)

class NotOne:
    pass
"""


def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str = "1.0", layer: str = "mean", out: str = "") -> str:
    """A module of one's own, new and importable -> its name."""
    name = f"own_{len(list(tmp_path.iterdir()))}"
    monkeypatch.delitem(sys.modules, name, raising=False)  # another test's
    text = OWN.replace("SCALE", scale).replace("LAYER", layer).replace("OUT", out or ".mean((2, 3))")
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_ones_own_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = own(tmp_path, monkeypatch)
    found = choose_extractor(extractor=f"{name}:Mean")
    described = json.loads(json.dumps(found.to_dict()))
    assert (described["name"], described["layer"], described["feature_size"]) == (f"{name}:Mean", "mean", 3)
    assert (described["fid_name"], described["kid_name"]) == ("fd_mean", "kid_mean")
    images = pictures(40, 0)
    features = extract_features(images, found)
    torch.testing.assert_close(features.values, images.float().mean((2, 3)))
    assert compare(features, features)["fd_mean"] == pytest.approx(0, abs=1e-6)


def test_its_identity_is_its_reference_weights_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [own(tmp_path, monkeypatch, scale) for scale in ("1.0", "1.0", "2.0")]
    same, again, other = (choose_extractor(extractor=f"{name}:Mean").identity for name in names)
    assert same["name"] != again["name"]
    assert {**same, "name": ""} == {**again, "name": ""}
    assert same["weights_sha256"] != other["weights_sha256"]
    one, changed = names[0], own(tmp_path, monkeypatch, out=".amax((2, 3))")
    codes = [choose_extractor(extractor=f"{name}:Mean").resize for name in (one, changed)]
    assert codes[0] != codes[1]


@pytest.mark.parametrize(
    ("ref", "layer", "out", "said"),
    [
        ("{own}", "mean", "", "not of the form module:Class"),
        ("{own}:", "mean", "", "not of the form module:Class"),
        ("no_such_module:Mean", "mean", "", "cannot import no_such_module.*PYTHONPATH"),
        ("{own}:Absent", "mean", "", "Absent is not in it"),
        ("{own}:NotOne", "mean", "", "no subclass of torch-fidelity's FeatureExtractorBase"),
        ("{own}:OWN", "mean", "", "OWN is not in it"),
        ("{own}:Mean", "deep", "", "no layer 'deep'.*'mean', 'all'"),
        ("{own}:FeatureExtractorBase", "mean", "", "names no default layer"),
        ("{own}:Mean", "mean", ".nonsense()", "cannot be used: AttributeError"),
        ("{own}:Mean", "mean", ".flatten()", r"shape \(6144,\), not \(2, D\)"),
        ("{own}:Mean", "mean", " +", "cannot import own_0 \\(SyntaxError"),
    ],
)
def test_mistakes_in_ones_own_extractor_are_one_line(
    ref: str, layer: str, out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = own(tmp_path, monkeypatch, layer=layer, out=out)
    with pytest.raises(UserError, match=said) as caught:
        choose_extractor(extractor=ref.format(own=name))
    assert "\n" not in str(caught.value)


def test_one_extractor_is_chosen_not_two() -> None:
    with pytest.raises(UserError, match="not both"):
        choose_extractor("weights.pth", "module:Class")


# --- torch-fidelity itself, in a process of its own

THEIRS = """
import json, sys
import torch_fidelity
from ddpm_redistill.evaluation import efficientnet
found = torch_fidelity.calculate_metrics(
    input1=sys.argv[1], input2=sys.argv[2], feature_extractor=efficientnet.EFFICIENTNET, fid=True, kid=True, prc=True,
    kid_subset_size=20, cuda=False, cache=False, save_cpu_ram=True, verbose=False,
)
print(json.dumps(found))
"""


@needs_demo
def test_torch_fidelity_on_folders_gives_our_figures(tmp_path: Path) -> None:
    sets = {"made": pictures(40, 0), "real": pictures(40, 1).flip(1)}
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{index:03d}.png")
    folders = [str(tmp_path / name) for name in sets]
    done = subprocess.run([sys.executable, "-c", THEIRS, *folders], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    network = choose_extractor(None).to("cpu")  # where theirs is
    ours = compare(*(extract_features(open_image_set(folder), network) for folder in folders))
    assert ours["fd_efficientnet_lite0"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["kid_efficientnet_lite0"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])
