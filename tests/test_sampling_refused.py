"""Sampling runs that are refused before anything is written, and what a resumed run may differ in."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampling_helpers import KINDS, OPTIONS, make_whole, same, sample, snapshot
from training_helpers import make_tiny_teacher, refused

from ddpm_redistill.cli import main

MISTAKES = [
    (["--spacing", "cubic"], "ddim has no spacing 'cubic': expected trailing or leading or quad"),
    (["--spacing", "quad", "--scheduler", "ddpm"], "ddpm has no spacing 'quad'"),
    (["--spacing", "leading", "--scheduler", "dpm++"], "dpm++ has no spacing 'leading'"),
    (["--eta", "1.01"], "eta must be between 0 and 1, not 1.01"),
    (["--eta=-1"], "eta must be between 0 and 1, not -1"),
    (["--eta", "some"], "eta"),
    (["--eta", "1", "--scheduler", "dpm++"], "dpm++ has no eta"),
    (["--steps", "1001", "--spacing", "quad"], "1001 steps are more than the 1000 timesteps"),
    (["--lean", "fast", "--compile", "on"], "lean execution is not compiled: leave out --lean"),
    (["--compile", "maybe"], "compile"),
    (["--output", "{place}/file"], "file is not a folder, nor an .npz file"),
    (["--output", "{place}/out.npy"], "out.npy is not a folder, nor an .npz file"),
    (["--output", "{place}/folder.npz"], "folder.npz is a folder"),
    (["--output", "{place}/foreign"], "is not an empty folder"),
    (["--output", "{place}/foreign", "--resume"], "nothing to resume"),
    (["--output", "{place}/nowhere", "--resume"], "nothing to resume"),
    (["--output", "{place}/nowhere.npz", "--resume"], "nothing to resume"),
    (["--output", "{place}/images"], "holds a sampling run: pass --resume"),
    (["--output", "{place}/images.npz"], "holds a sampling run: pass --resume"),
]
OTHER_RUNS = [
    (["--seed", "8"], "seed was 7 and is now 8"),
    (["--steps", "4"], "num_inference_steps was 3 and is now 4"),
    (["--scheduler", "ddpm"], "scheduler was ddim and is now ddpm"),
    (["--spacing", "leading"], "spacing was trailing and is now leading"),
    (["--eta", "0.5"], "eta was 0.0 and is now 0.5"),
    (["--batch_size", "5"], "batch_size was 4 and is now 5"),
    (["--dtype", "bfloat16"], "dtype was float32 and is now bfloat16"),
    (["--lean", "fast"], "lean was None and is now fast"),
    (["--compile", "on"], "compile was False and is now True"),
    (["--num_images", "9"], "may grow but not shrink to 9"),
    (["builtin:digits"], "model_sha256 was "),
]
for kind in KINDS:
    MISTAKES += [([*extra, "--output", "{place}/" + kind, "--resume"], message) for extra, message in OTHER_RUNS]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("place") / "teacher")


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``make_whole``. Not to be changed by a test."""
    return make_whole(teacher, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def place(teacher: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(whole, place, dirs_exist_ok=True)
    (place / "file").write_text("mine")
    (place / "folder.npz").mkdir()
    (place / "foreign").mkdir()
    (place / "foreign" / "cat.png").write_text("mine")
    return place


@pytest.mark.parametrize(("extra", "message"), MISTAKES, ids=[" ".join(extra) for extra, _ in MISTAKES])
def test_mistakes(capsys: Any, caplog: Any, teacher: Path, place: Path, extra: list[str], message: str) -> None:
    before = snapshot(place)
    model = [extra[0]] if extra[0].startswith("builtin:") else [str(teacher)]
    options = [part.format(place=place) for part in extra if not part.startswith("builtin:")]
    argv = ["sample", *model, "--output", str(place / "new"), *OPTIONS, *options]
    assert message in refused(capsys, caplog, argv)
    assert snapshot(place) == before


def test_a_model_of_other_channels(capsys: Any, caplog: Any, tmp_path: Path) -> None:
    model = make_tiny_teacher(tmp_path / "two", in_channels=2, out_channels=2)
    argv = ["sample", str(model), "--output", str(tmp_path / "out")]
    assert "makes images of 2 channels" in refused(capsys, caplog, argv)
    assert not (tmp_path / "out").exists()


def test_the_weights_of_a_resumed_run_may_have_moved(teacher: Path, whole: Path, tmp_path: Path) -> None:
    sample(teacher, tmp_path / "images")
    moved = shutil.copytree(teacher, tmp_path / "moved")
    sample(moved, tmp_path / "images", "--resume")
    found = snapshot(tmp_path / "images")
    assert json.loads(found.pop("sampling.json"))["model"] == str(moved)
    assert found == {name: data for name, data in snapshot(whole / "images").items() if name != "sampling.json"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": None}, "an earlier version began it, whose noise was drawn in another way (image by image, and now"),
        ({"noise": "blocks of 8"}, "(blocks of 8, and now blocks of 16); give another --output"),
        ({"device": "somewhere"}, "device was somewhere and is now "),
    ],
)
def test_a_run_of_other_noise_is_not_resumed(
    capsys: Any, caplog: Any, teacher: Path, tmp_path: Path, kind: str, settings: dict[str, Any], message: str
) -> None:
    sample(teacher, tmp_path / kind)
    if kind == "images":
        path = tmp_path / kind / "sampling.json"
        changed = {**json.loads(path.read_text()), **settings}
        path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    else:
        with np.load(tmp_path / kind) as file:
            pixels, changed = file["images"], {**json.loads(file["sampling.json"]), **settings}
        with zipfile.ZipFile(tmp_path / kind, "w") as archive:
            with archive.open("images.npy", "w") as member:
                np.save(member, pixels)
            archive.writestr("sampling.json", json.dumps({k: v for k, v in changed.items() if v is not None}))
    before = snapshot(tmp_path)
    argv = ["sample", str(teacher), "--output", str(tmp_path / kind), *OPTIONS, "--resume"]
    assert message in refused(capsys, caplog, argv)
    assert snapshot(tmp_path) == before


def test_a_resumed_run_has_the_batch_size_of_before(teacher: Path, whole: Path, tmp_path: Path) -> None:
    """Without it 64 would be taken, and the run refused."""
    sample(teacher, tmp_path / "images")
    (tmp_path / "images" / "000003.png").unlink()
    options = [option for option in OPTIONS if option not in ("--batch_size", "4")]
    assert len(options) == len(OPTIONS) - 2
    main(["sample", str(teacher), "--output", str(tmp_path / "images"), *options, "--resume"])
    assert same(tmp_path / "images", whole / "images")
