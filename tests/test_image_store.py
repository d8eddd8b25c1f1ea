"""Stores of a sampling run: whole files or none, what may go on and what is refused."""

import io
import json
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation import image_store
from ddpm_redistill.evaluation.image_store import ImageStore, open_store
from ddpm_redistill.sources.images import open_images

SETTINGS = {"model": "a", "model_sha256": "1" * 64, "seed": 0, "num_images": 5, "batch_size": 2, "lean": None}
SETTINGS |= {"noise_schedule": {"beta_end": 0.02}}
BATCHES = [range(0, 2), range(2, 4), range(4, 5)]
KINDS = ["images", "images.npz"]


def images(channels: int = 3, count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def fill(store: ImageStore, pixels: torch.Tensor, batches: list[range] = BATCHES) -> None:
    for batch in batches:
        store.write(batch, pixels[batch.start : batch.stop])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(store: ImageStore, resume: bool = True, **changes: Any) -> str:
    before = snapshot(store.output.parent)
    with pytest.raises(UserError) as caught:
        store.check({**SETTINGS, **changes}, resume=resume)
    assert snapshot(store.output.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_comes_out(tmp_path: Path, kind: str, channels: int) -> None:
    store, pixels = open_store(tmp_path / kind), images(channels)
    store.check(SETTINGS, resume=False)
    store.start(SETTINGS)
    assert not any(map(store.is_complete, BATCHES))
    fill(store, pixels)
    assert all(map(store.is_complete, BATCHES))
    assert torch.equal(torch.cat([store.read(batch) for batch in BATCHES]), pixels)
    store.finish(BATCHES, SETTINGS)
    opened = open_images(tmp_path / kind, image_size=4, channels=channels)
    assert torch.equal(torch.stack([opened[i] for i in range(5)]), pixels)
    assert store.settings() == SETTINGS
    if kind == "images":
        assert snapshot(tmp_path / kind).keys() == {"sampling.json", *(f"00000{i}.png" for i in range(5))}
        with Image.open(tmp_path / kind / "000004.png") as picture:
            assert picture.mode == ("L" if channels == 1 else "RGB")
    else:
        assert snapshot(tmp_path).keys() == {"images.npz"}
        with np.load(tmp_path / kind, allow_pickle=False) as file:
            assert file["images"].shape == (5, 4, 4, channels)
            assert file["images"].dtype == np.uint8
            assert json.loads(file["sampling.json"]) == SETTINGS
        assert zipfile.ZipFile(tmp_path / kind).testzip() is None


def test_a_batch_lacks_an_image(tmp_path: Path) -> None:
    store = open_store(tmp_path / "images")
    store.start(SETTINGS)
    fill(store, images())
    (tmp_path / "images" / "000001.png").unlink()
    (tmp_path / "images" / "000004.png").write_bytes(b"")
    assert [store.is_complete(batch) for batch in BATCHES] == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_leaves_no_torn_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / kind)
    store.start(SETTINGS)
    before = snapshot(tmp_path)

    def fail(source: Path, target: Path) -> None:
        assert source.stat().st_size > 0
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(image_store.os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            fill(store, images())
    assert snapshot(tmp_path) == before


def test_one_image_that_cannot_be_written_is_an_error_and_all_others_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written by several threads."""
    store, batch = open_store(tmp_path / "images"), range(40)
    pixels = images(count=40)
    store.start(SETTINGS)
    replace, writers = os.replace, set()

    def fail(source: Path, target: Path) -> None:
        writers.add(threading.get_ident())
        if target.name == "000003.png":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(image_store.os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            store.write(batch, pixels)
    assert threading.get_ident() not in writers
    found = {path.name for path in store.folder.iterdir()}
    assert "000003.png" not in found
    assert found <= {"sampling.json", *store.names(batch)}  # nothing half written
    for name in found - {"sampling.json"}:
        with Image.open(store.folder / name) as picture:
            assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), pixels[int(name[:6])])
    assert not store.is_complete(batch)
    store.write(batch, pixels)
    assert store.is_complete(batch)
    assert torch.equal(store.read(batch), pixels)


def test_files_have_the_bytes_that_pillow_writes(tmp_path: Path) -> None:
    store, pixels = open_store(tmp_path / "images"), images()
    store.start(SETTINGS)
    store.write(range(5), pixels)
    for index, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")
        assert (tmp_path / "images" / f"{index:06d}.png").read_bytes() == file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_start_clears_what_a_kill_left_half_written(tmp_path: Path, kind: str) -> None:
    store = open_store(tmp_path / kind)
    store.start(SETTINGS)
    fill(store, images())
    before = snapshot(store.folder)
    (store.folder / f".{store.names(BATCHES[0])[0]}.4711").write_bytes(b"half")
    mine = {".mine": b"somebody's", ".000000.png.txt": b"too"}
    for name, data in mine.items():
        (store.folder / name).write_bytes(data)
    half_an_npz = tmp_path / ".images.npz.4711"
    half_an_npz.write_bytes(b"half")
    store.check(SETTINGS, resume=True)
    store.start(SETTINGS)
    assert snapshot(store.folder) == {**before, **mine}
    assert half_an_npz.exists() == (kind == "images")  # a folder's run knows nothing of it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_sha256": "2" * 64}, f"model_sha256 was {'1' * 64} and is now {'2' * 64}"),
        ({"seed": 3}, "seed was 0 and is now 3"),
        ({"batch_size": 4}, "batch_size was 2 and is now 4"),
        ({"lean": "fast"}, "lean was None and is now fast"),
        ({"noise_schedule": {"beta_end": 0.01}}, "noise_schedule.beta_end was 0.02 and is now 0.01"),
        ({"num_images": 4}, "it is a run of 5 images, which may grow but not shrink to 4"),
    ],
)
def test_resume_with_other_settings_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    store = open_store(tmp_path / kind)
    store.start(SETTINGS)
    assert message in refusal(store, **changes)
    fill(store, images())
    store.finish(BATCHES, SETTINGS)
    assert message in refusal(store, **changes)
    store.check({**SETTINGS, "model": "the/same/weights/elsewhere", "num_images": 6}, resume=True)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_resume(tmp_path: Path, kind: str) -> None:
    store = open_store(tmp_path / kind)
    assert "nothing to resume" in refusal(store)
    store.folder.mkdir()
    assert "nothing to resume" in refusal(store)
    (store.folder / "sampling.json").write_text("[1, 2]")
    assert "does not hold the settings of a sampling run" in refusal(store)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    store = open_store(tmp_path / kind)
    store.start(SETTINGS)
    assert "holds a sampling run: pass --resume" in refusal(store, resume=False)
    fill(store, images())
    store.finish(BATCHES, SETTINGS)
    assert "holds a sampling run: pass --resume" in refusal(store, resume=False)


@pytest.mark.parametrize("name", ["cat.png", "000005.png", "notes.txt", "more"])
def test_a_folder_with_foreign_files(tmp_path: Path, name: str) -> None:
    store = open_store(tmp_path / "images")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_text("mine")
    assert "is not an empty folder" in refusal(store, resume=False)
    assert "nothing to resume" in refusal(store)
    store.start(SETTINGS)
    assert f"{name} in it is not of this run" in refusal(store)


def test_an_npz_of_somebody_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 4, 4, 1), np.uint8))
    store = open_store(tmp_path / "images.npz")
    assert "images.npz exists already" in refusal(store, resume=False)
    assert "nothing to resume" in refusal(store)
    (tmp_path / "images.npz").write_text("no archive")
    assert "nothing to resume" in refusal(store)


@pytest.mark.parametrize("name", ["file", "images.npy", "images.png", "images.zip"])
def test_an_output_of_another_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"{name} is not a folder, nor an .npz file"):
        open_store(tmp_path / name)


def test_a_folder_named_npz(tmp_path: Path) -> None:
    (tmp_path / "images.npz").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        open_store(tmp_path / "images.npz")


def test_a_folder_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    assert open_store(tmp_path / "run_v1.5").folder == tmp_path / "run_v1.5"


@pytest.mark.parametrize("killed", ["before the parts are removed", "while the parts are removed"])
def test_a_finished_npz_whose_parts_are_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    store = open_store(tmp_path / "images.npz")
    store.start(SETTINGS)
    fill(store, images())
    with monkeypatch.context() as patch:
        patch.setattr(image_store.shutil, "rmtree", lambda folder: None)
        store.finish(BATCHES, SETTINGS)
    finished = (tmp_path / "images.npz").read_bytes()
    if killed.startswith("while"):
        (store.folder / "sampling.json").unlink()
        (store.folder / store.names(BATCHES[0])[0]).unlink()
    store.check(SETTINGS, resume=True)
    store.start(SETTINGS)
    assert all(map(store.is_complete, BATCHES))
    store.finish(BATCHES, SETTINGS)
    assert snapshot(tmp_path) == {"images.npz": finished}


def test_a_finished_npz_grows_and_a_kill_in_between_loses_nothing(tmp_path: Path) -> None:
    store, pixels = open_store(tmp_path / "images.npz"), images(count=7)
    store.start(SETTINGS)
    fill(store, pixels)
    store.finish(BATCHES, SETTINGS)
    before, grown = snapshot(tmp_path), {**SETTINGS, "num_images": 7}
    store.check(grown, resume=True)
    store.start(grown)
    batches = [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    assert [store.is_complete(batch) for batch in batches] == [True, True, False, False]
    fill(store, pixels, batches[2:3])
    assert snapshot(tmp_path)["images.npz"] == before["images.npz"]  # killed here, and resumed
    store.check(grown, resume=True)
    store.start(grown)
    assert [store.is_complete(batch) for batch in batches] == [True, True, True, False]
    fill(store, pixels, batches[3:])
    store.finish(batches, grown)
    with np.load(tmp_path / "images.npz") as file:
        np.testing.assert_array_equal(file["images"], pixels.permute(0, 2, 3, 1).numpy())
        assert json.loads(file["sampling.json"])["num_images"] == 7
    assert snapshot(tmp_path).keys() == {"images.npz"}
