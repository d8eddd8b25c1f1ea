"""Sampling runs as a person starts them: to a folder or an .npz, killed and resumed, on one process and on two."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from training_helpers import SIZE, UNET_WEIGHTS, make_tiny_teacher, one_thread_environment, refused, tool

from ddpm_redistill import __version__
from ddpm_redistill.cli import main
from ddpm_redistill.evaluation import sample_run
from ddpm_redistill.evaluation.image_store import FolderStore, NpzStore
from ddpm_redistill.evaluation.sampling import batches_of
from ddpm_redistill.sources.images import open_images
from ddpm_redistill.sources.teacher import sha256_of

COUNT = 10
OPTIONS = ["--num_images", str(COUNT), "--batch_size", "4", "--steps", "3", "--seed", "7"]
KINDS = ["images", "images.npz"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("place") / "teacher")


def sample(teacher: Path, output: Path, *more: str) -> None:
    main(["sample", str(teacher), "--output", str(output), *OPTIONS, *more])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, images.npz and their grids, each made in one go. Not to be changed by a test."""
    place = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        sample(teacher, place / kind)
    return place


def same(one: Path, other: Path) -> bool:
    """Of two folders, or two files: the same bytes."""
    if one.is_file():
        return one.read_bytes() == other.read_bytes()
    return snapshot(one) == snapshot(other)


# --- what is written


def test_a_folder_and_an_npz_of_the_same_images(whole: Path) -> None:
    names = [f"{i:06d}.png" for i in range(COUNT)]
    assert sorted(snapshot(whole / "images")) == [*names, "sampling.json"]
    pixels = np.stack([np.asarray(Image.open(whole / "images" / name)) for name in names])
    assert pixels.shape == (COUNT, SIZE, SIZE)
    assert len(np.unique(pixels.reshape(COUNT, -1), axis=0)) == COUNT
    with np.load(whole / "images.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["images"][..., 0], pixels)
    sources = [open_images(whole / kind, image_size=SIZE, channels=1) for kind in KINDS]
    assert all(torch.equal(sources[0][i], sources[1][i]) for i in range(COUNT))
    assert sorted(path.name for path in whole.iterdir()) == ["images", "images.npz", "images_grid.png"]


def test_what_made_the_images(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    settings = ["--spacing", "quad", "--eta", "0.5", "--lean", "fast", "--dtype", "bfloat16"]
    main(["sample", "teacher", "--output", "out/images", *OPTIONS, *settings])
    text = (tmp_path / "out" / "images" / "sampling.json").read_text()
    found = json.loads(text)
    assert found.pop("noise_schedule").items() > {"beta_end": 0.02, "prediction_type": "epsilon"}.items()
    assert found == {
        "model": "teacher",
        "model_sha256": sha256_of(teacher / UNET_WEIGHTS),
        "seed": 7,
        "num_images": COUNT,
        "num_inference_steps": 3,
        "scheduler": "ddim",
        "spacing": "quad",
        "eta": 0.5,
        "batch_size": 4,
        "dtype": "bfloat16",
        "lean": "fast",
        "device": found["device"],
        "version": __version__,
        "torch": torch.__version__,
    }
    assert str(tmp_path) not in text


class MeanPixel(FeatureExtractorBase):
    """Features (N, 3): the mean of each channel. Torch-fidelity counts and reads the files of a folder itself."""

    seen = 0

    def __init__(self, name: str, features_list: list[str], **ignored: Any):
        super().__init__(name, features_list)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("mean",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "mean"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        MeanPixel.seen += len(images)
        return (images.float().mean((2, 3)),)


def test_torch_fidelity_reads_the_folder(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import registry

    torch_fidelity.register_feature_extractor("mean-pixel", MeanPixel)
    monkeypatch.setattr(MeanPixel, "seen", 0)
    try:
        found = torch_fidelity.calculate_metrics(
            input1=str(whole / "images"),
            input2=str(whole / "images"),
            feature_extractor="mean-pixel",
            kid=True,
            kid_subset_size=COUNT,
            kid_subsets=1,
            cuda=False,
            cache=False,
            verbose=False,
        )
    finally:
        registry.FEATURE_EXTRACTORS_REGISTRY.pop("mean-pixel", None)
    assert MeanPixel.seen == 2 * COUNT
    assert np.isfinite(found["kernel_inception_distance_mean"])


# --- killed and resumed


class Killed(Exception):
    """Raised in place of a kill."""


@pytest.mark.parametrize("write", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_resume_gives_the_same_bytes(
    teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, write: int
) -> None:
    calls, store = [], NpzStore if kind.endswith(".npz") else FolderStore
    true_write = store.write

    def killed(self: Any, batch: range, images: torch.Tensor) -> None:
        calls.append(batch)
        if len(calls) <= write:
            true_write(self, batch, images)
            return
        if kind == "images":  # half of this batch is written
            true_write(self, batch[:1], images[:1])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", killed)
        with pytest.raises(Killed):
            sample(teacher, tmp_path / kind)
    assert not (tmp_path / "images_grid.png").exists()
    assert not (tmp_path / "images.npz").exists()
    made = []

    def watched(self: Any, batch: range, images: torch.Tensor) -> None:
        made.append(batch)
        true_write(self, batch, images)

    monkeypatch.setattr(store, "write", watched)
    sample(teacher, tmp_path / kind, "--resume")
    assert made == batches_of(COUNT, 4)[write:]  # no finished batch again
    assert same(tmp_path / kind, whole / kind)
    assert same(tmp_path / "images_grid.png", whole / "images_grid.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kind, "images_grid.png"])


@pytest.mark.parametrize("kind", KINDS)
def test_more_images_are_those_of_a_longer_run(teacher: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "long").mkdir()
    sample(teacher, tmp_path / "long" / kind, "--num_images=15")
    sample(teacher, tmp_path / kind)
    sample(teacher, tmp_path / kind, "--num_images=15", "--resume")
    assert same(tmp_path / kind, tmp_path / "long" / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_of_a_finished_run_changes_nothing(
    teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sample(teacher, tmp_path / kind)

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing is left to sample")

    monkeypatch.setattr("ddpm_redistill.pipelines.pipeline_red_ddpm.RedDDPMPipeline.__call__", never)
    sample(teacher, tmp_path / kind, "--resume")
    assert same(tmp_path / kind, whole / kind)


def test_a_real_kill_and_resume_is_byte_equal(teacher: Path, tmp_path: Path) -> None:
    one, run = tmp_path / "one", tmp_path / "killed"
    options = ["--num_images", "36", "--batch_size", "4", "--steps", "5", "--scheduler", "ddpm"]
    command = [sys.executable, "-m", "ddpm_redistill", "sample", str(teacher), "--output", str(run), *options]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, env=one_thread_environment(), stderr=stderr)
        deadline = time.monotonic() + 120
        while not (run / "000009.png").exists():  # in the middle of the third batch of nine
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert 10 <= len(list(run.glob("*.png"))) < 36
    main(["sample", str(teacher), "--output", str(run), *options, "--resume"])
    main(["sample", str(teacher), "--output", str(one), *options])
    assert same(run, one)
    assert len(list(run.glob("*.png"))) == 36


# --- two processes


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_write_the_bytes_of_one(teacher: Path, whole: Path, tmp_path: Path, kind: str) -> None:
    launch = [tool("torchrun"), "--nproc_per_node", "2", "--standalone", "-m", "ddpm_redistill"]
    command = [*launch, "sample", str(teacher), "--output", str(tmp_path / kind), *OPTIONS]
    environment = one_thread_environment(ACCELERATE_USE_CPU="true")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{COUNT} images in ") == 1
    assert "process 1 of 2" in done.stderr
    assert "6/6" in done.stderr  # images of batches 0 and 2; the other process has batch 1
    assert done.stdout == ""
    assert same(tmp_path / kind, whole / kind)
    assert same(tmp_path / "images_grid.png", whole / "images_grid.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kind, "images_grid.png"])


# --- mistakes


MISTAKES = [
    (["--spacing", "cubic"], "ddim has no spacing 'cubic': expected trailing or leading or quad"),
    (["--spacing", "quad", "--scheduler", "ddpm"], "ddpm has no spacing 'quad'"),
    (["--spacing", "leading", "--scheduler", "dpm++"], "dpm++ has no spacing 'leading'"),
    (["--eta", "1.01"], "eta must be between 0 and 1, not 1.01"),
    (["--eta=-1"], "eta must be between 0 and 1, not -1"),
    (["--eta", "some"], "eta"),
    (["--eta", "1", "--scheduler", "dpm++"], "dpm++ has no eta"),
    (["--steps", "1001", "--spacing", "quad"], "1001 steps are more than the 1000 timesteps"),
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
    (["--num_images", "9"], "may grow but not shrink to 9"),
    (["builtin:digits"], "model_sha256 was "),
]
for kind in KINDS:
    MISTAKES += [([*extra, "--output", "{place}/" + kind, "--resume"], message) for extra, message in OTHER_RUNS]


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


def test_grid_names() -> None:
    assert sample_run.grid_path(Path("a/digits.npz")).name == "digits_grid.png"
    assert sample_run.grid_path(Path("a/run_v1.5")).name == "run_v1.5_grid.png"
