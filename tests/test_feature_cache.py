"""Features kept on disk: found again for the very same images and extractor, and for nothing else."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from feature_helpers import Wrapped, extractor, pictures

from ddpm_redistill.evaluation import feature_cache
from ddpm_redistill.evaluation.extractors import Extractor
from ddpm_redistill.evaluation.feature_cache import cached_features, default_cache_dir
from ddpm_redistill.evaluation.features import extract_features


def measured(network: Extractor) -> bool:
    """Whether the network has run since last asked."""
    ran = bool(network.module.batches)
    network.module.batches.clear()
    return ran


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("logits", [False, True])
def test_the_second_time_nothing_is_measured(logits: bool, tmp_path: Path) -> None:
    network, images = extractor(logits), pictures(40, 0)
    first = cached_features(images, network, tmp_path / "new" / "folder")
    assert measured(network)
    again = cached_features(Wrapped(images), network, tmp_path / "new" / "folder")
    assert not measured(network)
    expected = extract_features(images, network)
    for found in (first, again):
        assert torch.equal(found.values, expected.values)
        assert (found.logits is not None) == logits
        assert not logits or torch.equal(found.logits, expected.logits)
        assert found.images_sha256 == expected.images_sha256
        assert found.extractor is network
    assert [path.suffix for path in files(tmp_path / "new" / "folder")] == [".safetensors"]


def test_one_pixel_or_another_extractor_is_measured_again(tmp_path: Path) -> None:
    network, images = extractor(), pictures(40, 0)
    cached_features(images, network, tmp_path)
    changed = images.clone()
    changed[17, 2, 5, 5] ^= 1
    others = [extractor(**{key: "other"}) for key in ("name", "resize", "weights_sha256")]
    cases = [(changed, network), (images.flip(0), network), *((images, other) for other in others)]
    for count, (pixels, made_by) in enumerate([*cases, (images, extractor(logits=True))], start=2):
        measured(made_by)
        cached_features(pixels, made_by, tmp_path)
        assert measured(made_by)
        assert len(files(tmp_path)) == count


def test_a_gpu_has_files_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features differ in their last digits."""
    here = feature_cache._key("1", extractor())
    monkeypatch.setattr(Extractor, "device", torch.device("cuda", 1))
    there = feature_cache._key("1", extractor())
    assert json.loads(there) == {**json.loads(here), "device": "cuda"}
    assert here != there


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty", "text", "of other images"])
def test_a_file_that_is_not_what_it_should_be_is_made_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, images = extractor(), pictures(40, 0)
    cached_features(images, network, tmp_path)
    (path,) = files(tmp_path)
    good = path.read_bytes()
    if damage == "of other images":
        cached_features(pictures(40, 1), network, tmp_path)
        (other,) = set(files(tmp_path)) - {path}
        shutil.copy(other, path)
    else:
        bit = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
        path.write_bytes({"cut short": good[:-100], "one bit": bit, "empty": b"", "text": b"<html>"}[damage])
    measured(network)
    with caplog.at_level(logging.WARNING):
        found = cached_features(images, network, tmp_path)
    assert measured(network)
    assert torch.equal(found.values, extract_features(images, network).values)
    measured(network)
    (line,) = caplog.messages
    assert str(path) in line
    assert "\n" not in line
    cached_features(images, network, tmp_path)
    assert not measured(network)
    assert len(caplog.messages) == 1


def test_a_folder_that_cannot_be_written_is_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    with caplog.at_level(logging.WARNING):
        found = cached_features(pictures(5, 0), extractor(), tmp_path / "file" / "features")
    assert len(found) == 5
    (line,) = caplog.messages
    assert "cannot be kept" in line


def test_images_that_change_while_they_are_read_are_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Moving(Wrapped):
        def __getitem__(self, index: int) -> torch.Tensor:
            self.images = self.images.flip(1)
            return self.images[index]

    with caplog.at_level(logging.WARNING):
        cached_features(Moving(pictures(5, 0)), extractor(), tmp_path)
    assert "changed while they were read" in caplog.text
    assert files(tmp_path) == []


def test_where_features_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DDPM_REDISTILL_CACHE", raising=False)
    assert default_cache_dir() == Path("/home/someone/.cache/ddpm_redistill/features")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache_dir() == Path("/elsewhere/ddpm_redistill/features")
    monkeypatch.setenv("DDPM_REDISTILL_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path / "features"
    cached_features(pictures(5, 0), extractor())
    assert len(files(tmp_path / "features")) == 1
