"""Latent diffusion: an ``LDMPipeline`` folder is distilled in latent space, sampled and evaluated in pixels."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel, VQModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from training_helpers import SIZE, TRAIN, UNET, Killed, arguments, assert_same_run, kill_at, make_images, refused

from ddpm_redistill.cli import main
from ddpm_redistill.core.live_tensors import LiveTensorTracker
from ddpm_redistill.pipelines.image_noise import ImageNoise
from ddpm_redistill.pipelines.latents import decode, encode
from ddpm_redistill.sources.images import open_images
from ddpm_redistill.sources.latent_images import encoded
from ddpm_redistill.sources.teacher import load_pipeline, load_teacher
from ddpm_redistill.students.decoder_memory import decoder_memory

LATENT, CHANNELS = SIZE // 2, 2  # latents a side, and their channels
AUTOENCODER: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "latent_channels": CHANNELS,
    "norm_num_groups": 4,
    "sample_size": SIZE,
    "scaling_factor": 0.5,
}
KINDS: dict[str, type[nn.Module]] = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}


def make_ldm(folder: Path, kind: str) -> Path:
    """An LDMPipeline folder of random networks: images of 16 px and one channel, two channels of 8 latents a side."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        more = {"num_vq_embeddings": 32} if kind == "VQModel" else {}
        autoencoder = KINDS[kind](**AUTOENCODER, **more)
        unet = UNet2DModel(**{**UNET, "sample_size": LATENT, "in_channels": CHANNELS, "out_channels": CHANNELS})
    LDMPipeline(autoencoder, unet, DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images.npz; folders VQModel and AutoencoderKL, and a run of each: VQModel_run and AutoencoderKL_run."""
    place = tmp_path_factory.mktemp("latents")
    make_images(place / "images.npz")
    for kind in KINDS:
        make_ldm(place / kind, kind)
        main(["distill", *arguments(of(place, kind, place / f"{kind}_run"))])
    return place


def of(place: Path, kind: str, run: Path, **training: Any) -> dict[str, Any]:
    """Settings of three steps."""
    settings: dict[str, Any] = {"teacher": place / kind, "data": place / "images.npz", "output_dir": run}
    return {**settings, "training": {**TRAIN, "steps": 3, "checkpoint_every": 1, **training}}


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_decoding_are_diffusers_own_with_the_scaling_factor(place: Path, kind: str) -> None:
    vqvae = load_teacher(str(place / kind)).vqvae
    assert vqvae is not None
    images = torch.rand(3, 1, SIZE, SIZE) * 2 - 1
    latents = encode(vqvae, images)
    assert latents.shape == (3, CHANNELS, LATENT, LATENT)
    with torch.no_grad():
        own = vqvae.encode(images)
        plain = own.latents if kind == "VQModel" else own.latent_dist.mean
        assert torch.equal(latents, plain * 0.5)
        torch.testing.assert_close(decode(vqvae, latents), vqvae.decode(plain).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_latents_makes_the_images_of_a_loop_over_diffusers_parts(place: Path, kind: str) -> None:
    folder = place / f"{kind}_run" / "student"
    pipeline = load_pipeline(str(folder)).set_scheduler("ddim")
    assert pipeline.sample_shape == (CHANNELS, LATENT, LATENT)
    assert pipeline.image_shape == (1, SIZE, SIZE)
    images = pipeline(3, seed=4, num_inference_steps=4, batch_size=2, output_type="pt").images

    stock = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(stock) is LDMPipeline
    scheduler = DDIMScheduler.from_config(stock.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    sample = ImageNoise(4, range(3), pipeline.sample_shape, torch.device("cpu")).draw()
    with torch.no_grad():
        for t in scheduler.timesteps:
            sample = scheduler.step(stock.unet(sample, t).sample, t, sample).prev_sample
        wanted = stock.vqvae.decode(sample / stock.vqvae.config.scaling_factor).sample
    torch.testing.assert_close(images, (wanted / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert stock(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, SIZE, SIZE, 1)


def test_a_network_learns_the_latents_of_all_images(place: Path) -> None:
    images = open_images(place / "images.npz", image_size=SIZE, channels=1)
    vqvae = load_teacher(str(place / "VQModel")).vqvae
    assert vqvae is not None
    source = encoded(images, vqvae, torch.device("cpu"))
    assert len(source) == len(images) == 10
    assert source.held is not None
    assert source.held.dtype == torch.float32
    for index in (0, 9):
        alone = encode(vqvae, images[index][None].float() / 127.5 - 1)
        torch.testing.assert_close(source[index], alone[0], rtol=0, atol=1e-5)


def test_the_autoencoder_of_the_teacher_travels_with_the_student(place: Path) -> None:
    for kind in KINDS:
        folder = place / f"{kind}_run" / "student"
        name = Path("vqvae") / "diffusion_pytorch_model.safetensors"
        mine, theirs = load_file(folder / name), load_file(place / kind / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        card = (folder / "README.md").read_text()
        assert f"| images | {SIZE} px, channels 1 |" in card
        assert f"{LATENT} a side, channels {CHANNELS}" in card
        assert f"`{kind}`" in card


def test_samples_and_figures_are_of_pixels(place: Path, tmp_path: Path) -> None:
    student, teacher = place / "VQModel_run" / "student", place / "VQModel"
    main(["sample", str(student), "--num_images", "3", "--steps", "2", "--output", str(tmp_path / "images")])
    assert np.asarray(Image.open(tmp_path / "images" / "000002.png")).shape == (SIZE, SIZE)
    argv = ["--teacher", str(teacher), "--data", str(place / "images.npz"), "--num_images", "4", "--steps", "2"]
    main(["evaluate", str(student), *argv, "--output_dir", str(tmp_path / "figures")])
    report = json.loads((tmp_path / "figures" / "report.json").read_text())
    assert "student_to_data" in report["distances"]
    assert len(report["timestep_error"]["student"]) == 20
    memory = report["memory"]["student"]
    assert memory["decoder_peak"] == report["memory"]["teacher"]["decoder_peak"] > memory["tensor_peak"]


def test_the_memory_of_the_decoder_is_that_of_a_real_pass(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        vqvae = load_teacher(str(place / kind)).vqvae
        assert vqvae is not None
        latents = torch.zeros(1, CHANNELS, LATENT, LATENT)
        tracker = LiveTensorTracker(vqvae, [*vqvae.parameters(), *vqvae.buffers(), latents])
        with torch.no_grad(), tracker:
            vqvae.decode(latents)
        found = decoder_memory(vqvae.config, LATENT)
        assert found["decoder_peak"] == tracker.peak_bytes
        assert found["autoencoder_weights"] == sum(value.nbytes for value in vqvae.state_dict().values())
        for verb in (["plan", str(place / kind)], ["memory", str(place / kind)]):
            main([*verb, "--json"])
            told = json.loads(capsys.readouterr().out)["memory"]
            assert (told.get("teacher", told))["decoder_peak"] == tracker.peak_bytes


def test_a_killed_run_of_latents_goes_on_to_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = arguments(of(place, "AutoencoderKL", tmp_path / "run"))
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            main(["distill", *settings])
    main(["distill", *settings, "--resume"])
    assert_same_run(place / "AutoencoderKL_run", tmp_path / "run")


def test_neither_training_nor_sampling_goes_on_with_another_scaling_factor(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = damaged(place, tmp_path / "teacher")
    settings = arguments({**of(place, "VQModel", tmp_path / "run"), "teacher": teacher})
    main(["distill", *settings])
    sample = ["sample", str(teacher), "--output", str(tmp_path / "out"), "--num_images", "2", "--steps", "1"]
    main(sample)
    damaged(place, teacher, scaling_factor=0.25)
    line = "autoencoder_scaling_factor was 0.5 (provenance.json) and is now 0.25; that is never safe to change"
    assert line in refused(capsys, caplog, ["distill", *settings, "--resume_anyway"])
    assert "autoencoder_scaling_factor was 0.5 and is now 0.25" in refused(capsys, caplog, [*sample, "--resume"])


def test_a_teacher_of_latents_is_taught_from_an_autoencoder(place: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": place / "images.npz", "image_size": SIZE, "unet": UNET, "training": TRAIN}
    settings |= {"autoencoder": place / "VQModel", "output_dir": tmp_path, "training": {**TRAIN, "steps": 2}}
    main(["teach", *arguments(settings)])
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert teacher.image_channels == 1
    assert teacher.pixels_per_latent == 2
    assert teacher.unet.config.sample_size == LATENT
    assert teacher.unet.config.in_channels == CHANNELS
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert teacher.autoencoder_records.items() <= provenance.items()
    assert provenance["autoencoder_scaling_factor"] == 0.5


def damaged(place: Path, folder: Path, **config: Any) -> Path:
    """The VQModel folder with values of its autoencoder's config changed."""
    shutil.copytree(place / "VQModel", folder, dirs_exist_ok=True)
    path = folder / "vqvae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_what_is_wrong_with_an_autoencoder_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def said(folder: Path, verb: str = "plan", *more: str) -> str:
        return refused(capsys, caplog, [verb, str(folder), *more])

    assert "that is a AutoencoderTiny" in said(damaged(place, tmp_path / "kind", _class_name="AutoencoderTiny"))
    channels = said(damaged(place, tmp_path / "channels", latent_channels=4))
    assert "makes latents of 4 channels, and the network takes 2" in channels
    assert "of other channels than it takes" in said(damaged(place, tmp_path / "grey", out_channels=3))
    assert "latent_channels 'two'" in said(damaged(place, tmp_path / "two", latent_channels="two"))

    assert "has scaling_factor 0: it is above 0" in said(damaged(place, tmp_path / "zero", scaling_factor=0))
    assert "is a model of no class name" in said(damaged(place, tmp_path / "nameless", _class_name=None))

    weights = Path("vqvae") / "diffusion_pytorch_model.safetensors"
    missing = damaged(place, tmp_path / "missing")
    (missing / weights).unlink()
    assert "has no weights" in said(missing, "sample", "--output", str(tmp_path / "out"))
    linked = damaged(place, tmp_path / "linked")
    (linked / weights).unlink()
    (linked / weights).symlink_to(place / "VQModel" / weights)
    assert "is a link out of the model's folder" in said(linked)
    sample = ("sample", "--output", str(tmp_path / "out"))
    other = damaged(place, tmp_path / "other", block_out_channels=[8, 8])
    assert "autoencoder of" in said(other, *sample)
    nan = damaged(place, tmp_path / "nan")
    state = load_file(nan / weights)
    first = next(iter(state))
    save_file({**state, first: torch.full_like(state[first], float("nan"))}, nan / weights, {"format": "pt"})
    assert f"not finite, first in {first}" in said(nan, *sample)


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_latents_far_from_a_deviation_of_one_are_warned_of(
    place: Path, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    """As a scaling_factor that is missing or another's makes them."""
    images = open_images(str(place / "images.npz"), image_size=SIZE, channels=1)
    autoencoder = load_teacher(str(place / "VQModel")).vqvae
    assert autoencoder is not None
    plain = torch.stack(list(encoded(images, autoencoder, torch.device("cpu")))).std().item()
    autoencoder.register_to_config(scaling_factor=0.5 * factor / plain)
    caplog.clear()
    latents = encoded(images, autoencoder, torch.device("cpu"))
    line = (
        f"the latents of {images.description} have a standard deviation of 100, and noise schedules are made for about"
        " 1: look at scaling_factor in the config of the autoencoder"
    )
    assert caplog.messages == ([] if factor == 1 else [line])
    assert torch.stack(list(latents)).std().item() == pytest.approx(factor, rel=1e-4)


def test_what_latents_cannot_do_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = of(place, "VQModel", tmp_path / "run")
    for change, line in (
        ({"horizontal_flip": True}, "horizontal_flip is of pixels"),
        ({"image_size": SIZE + 1}, "image_size 17 does not divide by 2, the pixels a side of one latent"),
    ):
        assert line in refused(capsys, caplog, ["distill", *arguments({**settings, **change})])
    taught = {"data": place / "images.npz", "unet": UNET, "output_dir": tmp_path / "run"}
    for change, line in (
        ({"autoencoder": place, "image_size": SIZE}, "is no autoencoder's folder"),
        ({"autoencoder": place / "VQModel", "image_size": SIZE, "channels": 3}, "channels is 3, and the autoencoder"),
        ({"autoencoder": place / "VQModel", "image_size": 20}, "the latents' side, 10 does not divide by 8"),
    ):
        assert line in refused(capsys, caplog, ["teach", *arguments({**taught, **change})])
    argv = ["export", str(place / "VQModel"), "--format", "torch_export", "--output", str(tmp_path / "a.pt2")]
    assert "denoises latents" in refused(capsys, caplog, argv)
    assert not (tmp_path / "run").exists()
