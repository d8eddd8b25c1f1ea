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
from sampling_helpers import COUNT, KINDS, OPTIONS, make_whole, same, sample, snapshot
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from training_helpers import SIZE, UNET_WEIGHTS, make_tiny_teacher, one_thread_environment, refused, tool

from ddpm_redistill import __version__
from ddpm_redistill.cli import main
from ddpm_redistill.evaluation import sample_run
from ddpm_redistill.evaluation.image_store import FolderStore, NpzStore
from ddpm_redistill.evaluation.sampling import batches_of
from ddpm_redistill.pipelines.batch_sampler import BatchSampler
from ddpm_redistill.sources.images import open_images
from ddpm_redistill.sources.teacher import sha256_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("place") / "teacher")


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``make_whole``. Not to be changed by a test."""
    return make_whole(teacher, tmp_path_factory.mktemp("whole"))


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
        "noise": "blocks of 16",
        "num_images": COUNT,
        "num_inference_steps": 3,
        "scheduler": "ddim",
        "spacing": "quad",
        "eta": 0.5,
        "labels": None,
        "classes": None,
        "guidance": None,
        "batch_size": 4,
        "dtype": "bfloat16",
        "lean": "fast",
        "compile": False,
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


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    true_save = Image.Image.save

    def save(image: Any, path: Any, **options: Any) -> None:
        if "000005" in str(path):
            raise OSError(28, "No space left on device")
        true_save(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        with pytest.raises(SystemExit) as ended:
            sample(teacher, tmp_path / "images")
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.endswith("ddpm-redistill: error: [Errno 28] No space left on device\n")  # a progress bar may be before
    assert "Traceback" not in err
    sample(teacher, tmp_path / "images", "--resume")
    assert same(tmp_path / "images", whole / "images")


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

    monkeypatch.setattr(BatchSampler, "__call__", never)
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
    assert (
        9 <= len(list(run.glob("*.png"))) < 36
    )  # two batches, and of the third, written by several threads, one at least
    main(["sample", str(teacher), "--output", str(run), *options, "--resume"])
    main(["sample", str(teacher), "--output", str(one), *options])
    assert same(run, one)
    assert len(list(run.glob("*.png"))) == 36


# --- two processes


def sample_on_cpus(launch: list[str], teacher: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [*launch, "-m", "ddpm_redistill", "sample", str(teacher), "--output", str(output), *OPTIONS]
    environment = one_thread_environment(ACCELERATE_USE_CPU="true")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def whole_of_a_cpu(teacher: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole``, which a GPU makes where there is one."""
    if not torch.cuda.is_available():
        return whole
    place = tmp_path_factory.mktemp("whole_of_a_cpu")
    for kind in KINDS:
        sample_on_cpus([sys.executable], teacher, place / kind)
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_write_the_bytes_of_one(teacher: Path, whole_of_a_cpu: Path, tmp_path: Path, kind: str) -> None:
    whole, launch = whole_of_a_cpu, [tool("torchrun"), "--nproc_per_node", "2", "--standalone"]
    done = sample_on_cpus(launch, teacher, tmp_path / kind)
    assert done.stderr.count(f"{COUNT} images in ") == 1
    assert "process 1 of 2" in done.stderr
    assert "6/6" in done.stderr  # images of batches 0 and 2; the other process has batch 1
    assert done.stdout == ""
    assert same(tmp_path / kind, whole / kind)
    assert same(tmp_path / "images_grid.png", whole / "images_grid.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kind, "images_grid.png"])


@pytest.mark.parametrize(("gpus", "said"), [(1, "1 GPU:"), (3, "3 GPUs:")])
def test_more_processes_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any, teacher: Path, tmp_path: Path, gpus: int, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    argv = ["sample", str(teacher), "--output", str(tmp_path / "images"), *OPTIONS]
    line = refused(capsys, caplog, argv)
    assert f"4 processes were started on a machine of {said}" in line
    assert "ACCELERATE_USE_CPU=true" in line
    assert not (tmp_path / "images").exists()


def test_grid_names() -> None:
    assert sample_run.grid_path(Path("a/digits.npz")).name == "digits_grid.png"
    assert sample_run.grid_path(Path("a/run_v1.5")).name == "run_v1.5_grid.png"
