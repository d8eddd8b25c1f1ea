"""Images that models are measured against, and images made elsewhere, which are taken as they are or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_helpers import pictures
from PIL import Image

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.features import hash_images
from ddpm_redistill.evaluation.reference import open_image_set, reference_images


def write_folder(folder: Path, images: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / f"{index:03d}.png")
    return folder


def write_npz(path: Path, images: torch.Tensor) -> Path:
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy())
    return path


def see_through() -> Image.Image:
    """A palette image with a transparent colour."""
    image = Image.new("P", (16, 16))
    image.info["transparency"] = 0
    return image


# --- references


def test_a_reference_is_chosen_by_seed(tmp_path: Path) -> None:
    images = pictures(30, 0)
    source = str(write_npz(tmp_path / "images.npz", images))
    options = {"image_size": 16, "channels": 3}
    found = reference_images(source, **options, num_images=20, seed=3)
    assert torch.equal(torch.stack([found[i] for i in range(20)]), images[found.indices])
    assert len({*found.indices}) == 20
    assert found.indices == reference_images(source, **options, num_images=20, seed=3).indices
    assert found.indices != reference_images(source, **options, num_images=20, seed=4).indices
    assert found.indices[:7] == reference_images(source, **options, num_images=7, seed=3).indices
    assert sorted(reference_images(source, **options, num_images=30, seed=3).indices) == list(range(30))
    with pytest.raises(UserError, match="has 30 images, 31 are needed"):
        reference_images(source, **options, num_images=31, seed=0)


def test_a_folder_and_an_npz_of_the_same_images_are_one_reference(tmp_path: Path) -> None:
    images = pictures(10, 0, 1)
    sources = [write_folder(tmp_path / "folder", images), write_npz(tmp_path / "images.npz", images)]
    options = {"image_size": 16, "channels": 1, "num_images": 10, "seed": 0}
    one, other = (hash_images(reference_images(str(source), **options)) for source in sources)
    assert one == other


# --- images made elsewhere


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_as_they_are_and_in_order(channels: int, tmp_path: Path) -> None:
    images = pictures(12, 0, channels)
    for source in (write_folder(tmp_path / "folder", images), write_npz(tmp_path / "images.npz", images)):
        found = open_image_set(source)
        assert len(found) == 12
        assert torch.equal(torch.stack([found[i] for i in range(12)]), images)


def test_an_npz_without_a_channel_axis_is_grey(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", np.zeros((3, 8, 8), np.uint8))
    assert open_image_set(str(tmp_path / "images.npz"))[2].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (Image.new("RGB", (17, 17)), r"000\.png is 16x16 with 3 channels, odd\.png is 17x17 with 3 channels"),
        (Image.new("L", (16, 16)), r"000\.png is 16x16 with 3 channels, odd\.png is 16x16 with 1 channel;"),
        (Image.new("RGBA", (16, 16)), r"odd\.png has transparency"),
        (see_through(), r"odd\.png has transparency"),
        (Image.new("I;16", (16, 16)), r"odd\.png has mode I;16"),
        (None, r"odd\.png cannot be read"),
    ],
)
def test_images_that_differ_are_named(odd: Image.Image | None, said: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", pictures(3, 0))
    if odd is None:
        (folder / "odd.png").write_text("nothing")
    else:
        odd.save(folder / "odd.png", **odd.info)
    with pytest.raises(UserError, match=said) as caught:
        open_image_set(folder)
    assert "\n" not in str(caught.value)


def test_what_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "wide.npz", np.zeros((3, 8, 9, 3), np.uint8))
    np.savez(tmp_path / "floats.npz", np.zeros((3, 8, 8, 3)))
    np.savez(tmp_path / "four.npz", np.zeros((3, 8, 8, 4), np.uint8))
    write_folder(tmp_path / "tall", pictures(2, 0)[..., :9])
    cases = {
        "empty": "no images in",
        "nowhere": "does not exist",
        "text.txt": "is a file, but not an .npz",
        "text.npz": "not an archive",
        "wide.npz": "are 9x8: only square",
        "tall": "are 9x16: only square",
        "floats.npz": "float64",
        "four.npz": "images of 4 channels cannot be measured",
    }
    for name, said in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            open_image_set(tmp_path / name)
        assert "\n" not in str(caught.value)
