"""The default recipe is chosen by the images: which, what it says, and that a run keeps what it chose."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from training_helpers import SIZE, TRAIN, arguments

from ddpm_redistill.cli import main
from ddpm_redistill.recipes import RECIPES
from ddpm_redistill.sources.image_source import from_tensor
from ddpm_redistill.sources.image_survey import Survey
from ddpm_redistill.sources.images import open_images
from ddpm_redistill.sources.saturation import SATURATED, saturated_share


def source(values: np.ndarray):
    return from_tensor(torch.from_numpy(values.astype(np.uint8)), Survey("images", SIZE, {(SIZE, SIZE)}))


def test_the_share_counts_values_near_both_ends() -> None:
    values = np.full((3, 1, SIZE, SIZE), 100)
    values[0, :, : SIZE // 2] = 0
    values[1, :, : SIZE // 4] = 255
    for row, value in enumerate((253, 2, 252, 3)):  # two of these four rows are near enough
        values[2, :, row] = value
    assert saturated_share(source(values)) == pytest.approx((1 / 2 + 1 / 4 + 2 / SIZE) / 3)


def test_images_are_looked_at_over_the_whole_source() -> None:
    """Of sorted data the first images would not do."""
    values = np.full((2000, 1, 4, 4), 100)
    values[1000:] = 0
    assert saturated_share(from_tensor(torch.from_numpy(values.astype(np.uint8)), Survey("sorted", 4, {(4, 4)}))) == 0.5


def test_digits_are_saturated_and_natural_images_are_not() -> None:
    assert saturated_share(open_images("builtin:digits", image_size=32, channels=1)) > 3 * SATURATED
    ramp = np.linspace(20, 235, SIZE).astype(np.uint8)
    assert saturated_share(source(np.broadcast_to(ramp, (4, 3, SIZE, SIZE)).copy())) == 0


@pytest.mark.parametrize(("value", "recipe"), [(0, "saturated"), (90, "natural")])
def test_a_run_says_and_keeps_what_the_data_call_for(
    inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture, value: int, recipe: str
) -> None:
    images = np.random.default_rng(0).integers(20, 230, (8, SIZE, SIZE, 1), dtype=np.uint8)
    images[:, : SIZE // 2] = value
    np.savez(tmp_path / "images.npz", images=images)
    argv = ["distill", "--teacher", str(inputs["teacher"]), "--data", str(tmp_path / "images.npz")]
    argv += ["--output_dir", str(tmp_path / "run"), *arguments({"training": {**TRAIN, "steps": 4}})]
    main(argv)
    assert f"recipe: {recipe}, since {50 if value == 0 else 0}% of the pixel values are at an end" in caplog.text
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["recipe"] == recipe
    expected = RECIPES[recipe]["loss"]
    assert {name: kept["loss"][name] for name in expected} == expected
    main([*argv, "--resume"])  # the same data call for the same
    main([*argv, "--resume", "--recipe", recipe])  # and that by its name is the same run


def test_a_recipe_that_is_asked_for_is_taken(inputs, tmp_path: Path) -> None:
    argv = ["distill", "--teacher", str(inputs["teacher"]), "--data", str(inputs["data"]), "--recipe", "saturated"]
    main([*argv, "--output_dir", str(tmp_path), *arguments({"training": {**TRAIN, "steps": 1}})])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["recipe"] == "saturated"
