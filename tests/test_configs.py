"""Every config of configs/ passes ``--dry_run``, with images in place of its data, of its teacher the architecture."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, UNet2DModel, VQModel

from ddpm_redistill.cli import main
from ddpm_redistill.families.classifier_files import build, find_config, save_classifier
from ddpm_redistill.pipelines.conditioning import Conditioning
from ddpm_redistill.sources.model_folder import find_model
from ddpm_redistill.sources.teacher import Teacher
from ddpm_redistill.training import distill_ddpm, teach_ddpm

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
CLASSES = tuple("abcdefghij")
BUILT_IN = "builtin:digits"
ARCHITECTURES = {
    "google/ddpm-cifar10-32": "ddpm-cifar10-32",
    "runs/cifar10_small/teacher": "ddpm-cifar10-32",
    "runs/cifar10_classes/teacher": "ddpm-cifar10-32-conditional",
    "runs/celeba64/teacher": "ddpm-celeba-64",
    "google/ddpm-ema-celebahq-256": "ddpm-celebahq-256",
    "google/ddpm-ema-bedroom-256": "ddpm-celebahq-256",
    "CompVis/ldm-celebahq-256": "ldm-celebahq-256",
}
CLASSIFIERS = {
    "runs/digits_classifier/teacher": ("wrn:10-1", 32, 1),
    "runs/cifar10_classifier/teacher": ("wrn:22-1", 32, 3),
}
"""Architecture, pixels a side and channels."""


def config_of(ref: str) -> dict[str, Any]:
    """Of the network that a config names as its teacher."""
    if ref in ARCHITECTURES:
        path = FOLDER / "architectures" / ARCHITECTURES[ref] / "unet" / "config.json"
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    if ref == BUILT_IN:
        return find_model(ref).config
    run = Path(ref).parent.name
    files = [FOLDER / f"{name}.yaml" for name in (run, f"{run}_teacher")]
    taught = yaml.safe_load(next(file for file in files if file.is_file()).read_text())
    channels = {"sample_size": taught["image_size"], "in_channels": taught["channels"]}
    classes = {"num_class_embeds": 11} if taught.get("class_conditional") else {}
    return {**taught["unet"], **channels, "out_channels": taught["channels"], **classes}


def stand_in(ref: str, device: str) -> Teacher:
    """A teacher of this architecture, of random weights or, on the meta device, of none."""
    config = config_of(ref)
    with torch.device(device):
        unet = UNet2DModel.from_config(config)
        vqvae = None
        if ARCHITECTURES.get(ref, "").startswith("ldm"):
            path = FOLDER / "architectures" / ARCHITECTURES[ref] / "vqvae" / "config.json"
            vqvae = VQModel.from_config(json.loads(path.read_text())).eval()
    id2label = Conditioning(CLASSES, 10).id2label if config.get("num_class_embeds") else None
    return Teacher(unet.eval(), DDPMScheduler(), ref, "0" * 64, id2label, vqvae=vqvae)


def classifier_stand_in(ref: str, folder: Path) -> Path:
    """A folder of random weights in the place of the classifier that a config names as its teacher."""
    architecture, size, channels = CLASSIFIERS[ref]
    told = find_config(architecture, image_size=size, num_classes=10, in_channels=channels)
    save_classifier(build(told), told, folder)
    return folder


def make_data(path: Path, size: int, channels: int) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (20, size, size, channels), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(20) % 10)
    return path


@pytest.fixture
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """distill and teach load stand-ins; and Accelerate forgets the precision of the config before."""
    monkeypatch.setattr(distill_ddpm, "load_teacher", lambda ref: stand_in(ref, "meta"))
    monkeypatch.setattr(teach_ddpm, "load_teacher", lambda ref: stand_in(ref, "cpu"))
    monkeypatch.setattr(teach_ddpm, "find_model", lambda ref: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("_without_weights")
def test_a_config_passes_a_dry_run(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = yaml.safe_load(path.read_text())
    verb = "teach" if {"unet", "architecture"} & settings.keys() else "distill"
    options = ["--output_dir", str(tmp_path / "run")]
    if verb == "teach":
        size, channels = settings["image_size"], settings["channels"]
    elif settings["teacher"] in CLASSIFIERS:
        _, size, channels = CLASSIFIERS[settings["teacher"]]
        options += ["--teacher", str(classifier_stand_in(settings["teacher"], tmp_path / "teacher"))]
    else:
        config = config_of(settings["teacher"])
        size, channels = config["sample_size"], config["in_channels"]
        size *= 4 if settings["teacher"].startswith("CompVis") else 1
    if settings["data"] != BUILT_IN:
        options += ["--data", str(make_data(tmp_path / "images.npz", size, channels))]
    main([verb, "--config", str(path), *options, "--dry_run"])
    assert f"{size}x{size}" in caplog.text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_head_of_a_config_has_its_command(path: Path) -> None:
    text = path.read_text()
    head = text[: next(i for i, line in enumerate(text.splitlines(True)) if not line.startswith("#")) or None]
    assert head.startswith("# ")
    assert f"--config configs/{path.name}" in text


@pytest.mark.parametrize("folder", sorted((FOLDER / "architectures").glob("*/")), ids=lambda folder: folder.name)
def test_an_architecture_is_what_its_config_says(folder: Path) -> None:
    model = find_model(str(folder)) if not (folder / "vqvae").is_dir() else None
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.device("meta"):
        parameters = sum(p.numel() for p in UNet2DModel.from_config(config).parameters())
    known = {"ddpm-cifar10-32": 35_746_307, "ddpm-celebahq-256": 113_673_219}
    assert parameters == known.get(folder.name, parameters)
    assert model is None or model.config == config
