"""Links and names in a stranger's folder that lead out of it, shards among them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hostile_helpers import Spoil, assert_refused, pickled_weights
from teacher_kinds import edit
from training_helpers import UNET_WEIGHTS, make_tiny_teacher

from ddpm_redistill import UserError, load_teacher
from ddpm_redistill.sources.teacher import find_model

HUB_LAYOUT = Path("models--someone--ddpm")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("plain") / "teacher")


def weights_linked_from_outside(folder: Path, marker: Path) -> None:
    outside = folder.parents[1] / "private.safetensors"
    (folder / UNET_WEIGHTS).rename(outside)
    (folder / UNET_WEIGHTS).symlink_to(outside)


def config_linked_from_outside(folder: Path, marker: Path) -> None:
    outside = folder.parents[1] / "private.json"
    (folder / "unet" / "config.json").rename(outside)
    (folder / "unet" / "config.json").symlink_to("../../../private.json")


def unet_linked_from_outside(folder: Path, marker: Path) -> None:
    (folder / "unet").rename(folder.parents[1] / "unet")
    (folder / "unet").symlink_to(folder.parents[1] / "unet")


def schedule_linked_from_outside(folder: Path, marker: Path) -> None:
    (folder / "scheduler").rename(folder.parents[1] / "scheduler")
    (folder / "scheduler").symlink_to(folder.parents[1] / "scheduler")


def index_that_climbs(folder: Path, marker: Path) -> None:
    edit(folder / "model_index.json", unet=["../../code", "UNet2DModel"])


def index_with_an_absolute_path(folder: Path, marker: Path) -> None:
    edit(folder / "model_index.json", _class_name=[str(marker.parent / "code"), "Pipeline"])


def part_with_a_name_that_climbs(folder: Path, marker: Path) -> None:
    edit(folder / "model_index.json", **{"..\\..\\unet": ["diffusers", "UNet2DModel"]})


def shard(folder: Path, name: object) -> None:
    index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def shards_that_climb(folder: Path, marker: Path) -> None:
    shard(folder, "../../../private.safetensors")


def shards_in_another_folder(folder: Path, marker: Path) -> None:
    shard(folder, "more/a.safetensors")


def shards_of_a_pickle(folder: Path, marker: Path) -> None:
    pickled_weights(folder, marker)
    shard(folder, "diffusion_pytorch_model.bin")


def shards_linked_from_outside(folder: Path, marker: Path) -> None:
    weights_linked_from_outside(folder, marker)
    (folder / UNET_WEIGHTS).rename(folder / "unet" / "a.safetensors")
    shard(folder, "a.safetensors")


def shards_that_are_no_names(folder: Path, marker: Path) -> None:
    shard(folder, ["a.safetensors"])


REFUSED: list[tuple[Spoil, str]] = [
    (weights_linked_from_outside, "is a link out of the model's folder"),
    (config_linked_from_outside, "is a link out of the model's folder"),
    (unet_linked_from_outside, "is a link out of the model's folder"),
    (schedule_linked_from_outside, "is a link out of the model's folder"),
    (index_that_climbs, "names '../../code', a path out of the model's folder"),
    (index_with_an_absolute_path, "a path out of the model's folder"),
    (part_with_a_name_that_climbs, "a path out of the model's folder"),
    (shards_that_climb, "private.safetensors', a path out of the model's folder"),
    (shards_in_another_folder, "which is no .safetensors file beside it"),
    (shards_of_a_pickle, "which is no .safetensors file beside it"),
    (shards_linked_from_outside, "is a link out of the model's folder"),
    (shards_that_are_no_names, "names no file of weights"),
]


@pytest.mark.parametrize(("spoil", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_that_leads_outside(spoil, words, plain, tmp_path, capsys) -> None:
    folder = shutil.copytree(plain, tmp_path / "in" / "model")
    spoil(folder, tmp_path / "owned")
    assert_refused(folder, words, tmp_path, capsys)


def test_the_links_of_the_hubs_cache_are_its_own(plain: Path, tmp_path: Path) -> None:
    """A snapshot there is links to ``blobs`` beside it; one that leads out of the repository is refused."""
    repository = tmp_path / HUB_LAYOUT
    snapshot = shutil.copytree(plain, repository / "snapshots" / "0123")
    (repository / "blobs").mkdir()
    for path in (snapshot / UNET_WEIGHTS, snapshot / "unet" / "config.json"):
        blob = repository / "blobs" / path.name
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    assert load_teacher(str(snapshot)).sha256 == load_teacher(str(snapshot / "unet")).sha256
    (snapshot / UNET_WEIGHTS).unlink()
    (snapshot / UNET_WEIGHTS).symlink_to(plain / UNET_WEIGHTS)
    with pytest.raises(UserError, match="link out of"):
        find_model(str(snapshot))
