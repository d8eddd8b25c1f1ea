"""int8 weights are the rounded weights and nothing else; int8 activations are calibrated on noisy training images."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from export_helpers import make_student
from training_helpers import SIZE, refused

from ddpm_redistill import export_model, load_onnx_pipeline, load_pipeline, open_images
from ddpm_redistill.cli import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ddpm_redistill.export import onnx_export  # noqa: E402  # needs what is skipped without
from ddpm_redistill.export.quantise import calibration_feeds  # noqa: E402
from ddpm_redistill.export.weights_int8 import per_channel_int8, quantise_weights  # noqa: E402


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_student(tmp_path_factory.mktemp("model") / "student"))


@pytest.fixture(scope="module")
def file(student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student in float32. Not to be changed by a test."""
    return export_model(student, tmp_path_factory.mktemp("files") / "any.onnx", format="onnx")


@pytest.fixture
def ready(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export takes the file that is there: torch's exporter needs seconds."""
    monkeypatch.setattr("ddpm_redistill.export.ddpm.trace", lambda unet, batch_size: None)
    monkeypatch.setattr(
        onnx_export, "write_onnx", lambda program, path, description, opset, output: shutil.copy(file, path)
    )


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def outputs(path: Path) -> torch.Tensor:
    """Of four inputs at timesteps over the schedule."""
    sample = torch.randn(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found: torch.Tensor = load_onnx_pipeline(str(path)).unet(sample, torch.tensor([0, 300, 600, 999])).sample
    return found


@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 3, 3), 0), ((4, 6), 1)])
def test_each_channel_has_its_scale(shape: tuple[int, ...], axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight = np.moveaxis(weight, axis, 0)
    weight *= 10.0 ** np.arange(len(weight)).reshape(-1, *[1] * (weight.ndim - 1))
    weight[1] = 0
    weight = np.moveaxis(weight, 0, axis).astype(np.float32)
    values, scale = per_channel_int8(weight, axis)
    assert (values.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (shape[axis],))
    first = np.moveaxis(values, axis, 0)
    assert not first[1].any()
    assert all(np.abs(channel).max() == 127 for k, channel in enumerate(first) if k != 1)
    spread = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    assert (np.abs(values * spread - weight) <= spread * 0.5001).all()


def test_int8_weights_are_the_rounded_weights(file: Path, tmp_path: Path) -> None:
    """The int8 file gives, to rounding, what the float file gives with its weights put on the grid by hand."""
    small, by_hand = (Path(shutil.copy(file, tmp_path / name)) for name in ("small.onnx", "by_hand.onnx"))
    count = quantise_weights(small)
    before, after = initializers(file), initializers(small)
    quantised = {name.removesuffix(".q") for name, value in after.items() if value.dtype == np.int8}
    large = {name for name, value in before.items() if value.dtype == np.float32 and value.ndim > 1 and value.size > 1}
    layers = {node.input[1] for node in onnx.load(file).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    assert quantised == large & layers
    assert sum(before[name].size for name in quantised) == count
    assert count > 0.9 * sum(before[name].size for name in large)
    assert not quantised & after.keys()  # the float values are gone
    model = onnx.load(by_hand)
    axes = {n.output[0]: n.attribute[0].i for n in onnx.load(small).graph.node if n.op_type == "DequantizeLinear"}
    for each in model.graph.initializer:
        if each.name in quantised:
            values, scale = after[f"{each.name}.q"], after[f"{each.name}.s"]
            spread = scale.reshape([-1 if i == axes[each.name] else 1 for i in range(values.ndim)])
            each.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32) * spread, each.name))
    onnx.save(model, by_hand)
    torch.testing.assert_close(outputs(small), outputs(by_hand), atol=1e-5, rtol=1e-4)
    assert 1e-4 < (outputs(small) - outputs(file)).abs().max() / outputs(file).abs().max() < 0.1


def test_the_verb_writes_int8_weights(student: str, ready: None, tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.onnx"
    main(["export", student, "--format", "onnx", "--output", str(path), "--quantise", "int8_weights"])
    assert np.dtype(np.int8) in {value.dtype for value in initializers(path).values()}
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_the_verb_calibrates_int8(
    student: str, file: Path, ready: None, inputs: dict[str, str], tmp_path: Path
) -> None:
    argv = ["export", student, "--format", "onnx", "--quantise", "int8", "--data", inputs["data"]]
    for name, count in (("a", "24"), ("b", "24"), ("one", "1")):
        main([*argv, "--calibration_images", count, "--output", str(tmp_path / f"{name}.onnx")])
    paths = [tmp_path / f"{name}.onnx" for name in ("a", "b", "one")]
    nodes = onnx.load(paths[0]).graph.node
    made_by = {name: node for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type == "Conv"]
    assert layers
    for node in layers:  # weights and activations both
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    error = (outputs(paths[0]) - outputs(file)).abs().mean() / outputs(file).abs().mean()
    assert 1e-3 < error < 0.2
    assert torch.equal(outputs(paths[0]), outputs(paths[1]))
    assert not torch.equal(outputs(paths[0]), outputs(paths[2]))  # the data have a say


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [16, 4]), (8, [8, 8, 8])])
def test_calibration_covers_the_schedule(inputs: dict[str, str], batch_size: int | None, sizes: list[int]) -> None:
    images, scheduler = open_images(inputs["data"], image_size=SIZE, channels=1), DDPMScheduler()

    def feeds(seed: int) -> list[dict[str, Any]]:
        return list(calibration_feeds(images, scheduler, count=20, batch_size=batch_size, seed=seed))

    found = feeds(0)
    assert [each["sample"].shape for each in found] == [(size, 1, SIZE, SIZE) for size in sizes]
    timesteps = np.concatenate([each["timestep"] for each in found])
    assert timesteps.dtype == np.int64
    assert list(timesteps[:20]) == [k * 999 // 19 for k in range(20)]
    samples = np.concatenate([each["sample"] for each in found])
    clean = torch.stack([images[k] for k in range(len(images))]).float().numpy() / 127.5 - 1
    nearest = [np.abs(clean - sample).mean((1, 2, 3)).min() for sample in samples[:20]]
    assert nearest[0] < 0.05  # a training image and next to no noise
    assert nearest[19] > 0.5
    assert 0.8 < samples[19].std() < 1.2
    assert all(np.array_equal(a["sample"], b["sample"]) for a, b in zip(found, feeds(0), strict=True))
    assert not np.array_equal(found[0]["sample"], feeds(1)[0]["sample"])


MISTAKES = [
    (["--quantise", "int4"], "unknown quantisation 'int4': expected one of int8_weights, int8"),
    (["--quantise", "int8"], "--quantise int8 and --data go together"),
    (["--quantise", "int8_weights", "--data", "{data}"], "--quantise int8 and --data go together"),
    (["--data", "{data}"], "--quantise int8 and --data go together"),
    (["--quantise", "int8", "--data", "{empty}"], "no images in {empty}"),
    (["--quantise", "int8", "--data", "{data}", "--calibration_images", "0"], "the calibration set is empty"),
]


@pytest.mark.parametrize(("argv", "words"), MISTAKES)
def test_mistakes(student, ready, inputs, tmp_path, capsys, caplog, argv: list[str], words: str) -> None:
    (tmp_path / "empty").mkdir()
    names = {"data": inputs["data"], "empty": str(tmp_path / "empty")}
    output = tmp_path / "out" / "a.onnx"
    output.parent.mkdir()
    argv = ["export", student, "--format", "onnx", "--output", str(output), *(part.format(**names) for part in argv)]
    assert words.format(**names) in refused(capsys, caplog, argv)
    assert list(output.parent.iterdir()) == []


def test_other_formats_stay_float(student, tmp_path, capsys, caplog) -> None:
    argv = ["--format", "torch_export", "--output", str(tmp_path / "a.pt2"), "--quantise", "int8_weights"]
    assert "format torch_export is written in float32" in refused(capsys, caplog, ["export", student, *argv])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_is_not_kept(student, ready, tmp_path, capsys, caplog, monkeypatch) -> None:
    monkeypatch.setattr("ddpm_redistill.export.weights_int8.LARGEST", np.nan)
    argv = ["--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--quantise", "int8_weights"]
    assert "not finite as int8_weights" in refused(capsys, caplog, ["export", student, *argv])
    assert list(tmp_path.iterdir()) == []


def test_the_original_is_as_good_as_ever(student: str, file: Path) -> None:
    unet = load_pipeline(student).unet
    sample = torch.randn(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = unet(sample, torch.tensor([0, 300, 600, 999])).sample
    assert (outputs(file) - expected).abs().max() <= 1e-4 * expected.abs().max()
