"""A network in another format gives the outputs and images of the original, or there is no file."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from export_helpers import make_student
from torch import nn
from training_helpers import refused

from ddpm_redistill import UserError, export_model, load_onnx_pipeline, load_pipeline
from ddpm_redistill.cli import main
from ddpm_redistill.evaluation.sampling import sample_images
from ddpm_redistill.export import export_model as exporting
from ddpm_redistill.export.torch_export import call_torch_export
from ddpm_redistill.export.tracing import trace
from ddpm_redistill.export.verify import TOLERANCE, batches, difference

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

STATIC = 3


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_student(tmp_path_factory.mktemp("model") / "student"))


@pytest.fixture(scope="module")
def files(student: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student in every format: any batch, and for ONNX one of its own."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "onnx": export_model(student, folder / "any.onnx", format="onnx"),
        "static": export_model(student, folder / "static.onnx", format="onnx", batch_size=STATIC, opset=21),
        "torch_export": export_model(student, folder / "any.pt2", format="torch_export"),
    }


def called(name: str, path: Path) -> Any:
    if name == "torch_export":
        return call_torch_export(path)
    unet = load_onnx_pipeline(str(path)).unet
    return lambda sample, timestep: unet(sample, timestep).sample


@pytest.mark.parametrize("name", ["onnx", "static", "torch_export"])
def test_the_outputs_are_the_originals(student: str, files: dict[str, Path], name: str) -> None:
    unet = load_pipeline(student).unet
    exported = called(name, files[name])
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 70) if name != "static" else (STATIC,):  # diffusers branches at 64 images
        sample = torch.randn(count, 1, 16, 16, generator=generator)
        timestep = torch.randint(1000, (count,), generator=generator)
        with torch.no_grad():
            expected = unet(sample, timestep).sample
        found = exported(sample, timestep)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (found - exported(sample, (timestep + 300) % 1000)).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("name", ["onnx", "static"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++"])
def test_onnxruntime_samples_the_same_images(student: str, files: dict[str, Path], name: str, scheduler: str) -> None:
    pipelines = [load_pipeline(student), load_onnx_pipeline(str(files[name]))]
    found = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        pipeline.set_scheduler(scheduler)
        found.append(pipeline(16, seed=5, num_inference_steps=4, batch_size=7, output_type="pt").images)
    assert found[0].shape == (16, 1, 16, 16)
    assert (found[0] - found[1]).abs().max() <= 1e-3
    assert (found[0][0] - found[0][1]).abs().max() > 0.1


def test_the_verb_samples_a_file(student: str, files: dict[str, Path], tmp_path: Path, capsys) -> None:
    argv = ["--num_images", "3", "--batch_size", "2", "--steps", "2"]
    main(["sample", str(files["onnx"]), "--output", str(tmp_path / "made"), *argv])
    assert len(list((tmp_path / "made").glob("*.png"))) == 3
    pipeline = load_onnx_pipeline(str(files["onnx"])).set_scheduler("ddim")
    assert sample_images(pipeline, num_images=3, num_inference_steps=2, batch_size=2).images.shape == (3, 1, 16, 16)
    settings = json.loads((tmp_path / "made" / "sampling.json").read_text())
    assert settings["noise_schedule"]["prediction_type"] == "v_prediction"


def test_files_name_no_path_of_this_machine(files: dict[str, Path]) -> None:
    for path in files.values():
        content = path.read_bytes()
        assert b"site-packages" not in content
        assert str(Path(exporting.__file__).parent.parent).encode() not in content


def test_opset_and_batch_size_are_as_asked(files: dict[str, Path]) -> None:
    for name, opset, batch in (("onnx", 18, 0), ("static", 21, STATIC)):
        model = onnx.load(files[name])
        assert [each.version for each in model.opset_import if each.domain == ""] == [opset]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch


def test_batch_norms_are_folded_and_the_network_is_left_alone(student: str, files: dict[str, Path]) -> None:
    unet = load_pipeline(student).unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    program = trace(unet, 1)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert any(isinstance(module, nn.BatchNorm2d) for module in unet.modules())
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(files["onnx"]).graph.node}


def test_a_network_that_branches_on_the_batch(tiny_config: dict[str, Any]) -> None:
    blocks = {"down_block_types": ["ResnetDownsampleBlock2D"] * 2, "up_block_types": ["ResnetUpsampleBlock2D"] * 2}
    unet = UNet2DModel(**{**tiny_config, **blocks, "block_out_channels": [8, 8]}).eval()
    with pytest.raises(UserError, match=r"cannot be traced: .*with --batch_size N it may go"):
        trace(unet)


# --- the check


def test_difference_finds_what_differs(student: str) -> None:
    pipeline = load_pipeline(student)
    unet = pipeline.unet

    def call(change: float) -> Any:
        return lambda sample, timestep: unet(sample, timestep).sample * change

    assert difference(unet, call(1), 1000) == 0
    assert difference(unet, call(1 + 2 * TOLERANCE), 1000, 5) == pytest.approx(2 * TOLERANCE, rel=0.05)
    assert difference(unet, call(float("inf")), 1000) != difference(unet, call(float("inf")), 1000)  # NaN
    assert difference(unet, lambda sample, timestep: unet(sample, 7).sample, 1000) > 1e-2


def test_an_output_of_zeros_has_no_difference(tiny_teacher: UNet2DModel) -> None:
    unet = copy.deepcopy(tiny_teacher)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    assert difference(unet, lambda sample, timestep: unet(sample, timestep).sample, 1000) == 0
    assert difference(unet, lambda sample, timestep: torch.full_like(sample, 1e-9), 1000) > TOLERANCE


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [1, 2, 3] * 3 + [1, 1]), (8, [8] * 3), (64, [64])])
def test_inputs_come_in_batches(batch_size: int | None, sizes: list[int]) -> None:
    found = list(batches(batch_size))
    assert [len(each) for each in found] == sizes
    assert [index for each in found for index in each] == list(range(sum(sizes)))


@pytest.fixture
def wrong_fold() -> Iterator[None]:
    """An export that loses its RED blocks' norms."""

    def lose(network: nn.Module) -> None:
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm_redistill.export.tracing.fold_batch_norms", lose)
        yield


def test_a_file_that_differs_is_not_kept(student: str, wrong_fold: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the exported network differs from .* more than 0.0001"):
        export_model(student, tmp_path / "a.pt2", format="torch_export")
    assert list(tmp_path.iterdir()) == []


# --- mistakes

MISTAKES = [
    (["{images}", "--format", "onnx", "--output", "{new}/a.onnx"], "is a file: give the diffusers folder"),
    (["{new}", "--format", "onnx", "--output", "{new}/a.onnx"], "is no diffusers model"),
    (["{student}", "--format", "tflite", "--output", "{new}/a.onnx"], "unknown format 'tflite'"),
    (["{student}", "--format", "onnx", "--output", "{new}/a.pt2"], "does not end in .onnx"),
    (["{student}", "--format", "torch_export", "--output", "{new}/a.onnx"], "does not end in .pt2"),
    (["{student}", "--format", "onnx", "--output", "{there}"], "exists already: give another --output"),
    (["{student}", "--format", "onnx", "--output", "{new}/no/a.onnx"], "there is no folder {new}/no"),
    (["{student}", "--format", "onnx", "--output", "{new}/a.onnx", "--opset", "11"], "opsets 18 to 25 can"),
    (["{student}", "--format", "onnx", "--output", "{new}/a.onnx", "--opset", "26"], "opsets 18 to 25 can"),
    (["{student}", "--format", "torch_export", "--output", "{new}/a.pt2", "--opset", "18"], "--opset is for ONNX"),
    (["{student}", "--format", "onnx", "--output", "{new}/a.onnx", "--batch_size", "0"], "must be at least 1, not 0"),
    (["{student}", "--format", "executorch", "--output", "{new}/a.pte"], "plans its memory ahead: give --batch_size"),
    (["{student}", "--output", "{new}/a.onnx"], "format"),
]


@pytest.mark.parametrize(("argv", "words"), MISTAKES)
def test_mistakes(student, files, inputs, tmp_path, capsys, caplog, argv: list[str], words: str) -> None:
    names = {"student": student, "new": str(tmp_path), "there": str(files["onnx"]), "images": inputs["data"]}
    line = refused(capsys, caplog, ["export", *(part.format(**names) for part in argv)])
    assert words.format(**names) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "package", "extra"), [("onnx", "onnxruntime", "export"), ("executorch", "executorch", "executorch")]
)
def test_a_package_that_is_not_there(
    student, tmp_path, capsys, caplog, monkeypatch, format: str, package: str, extra: str
) -> None:
    find = exporting.importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    output = str(tmp_path / f"a{exporting.FORMATS[format]}")
    line = refused(capsys, caplog, ["export", student, "--format", format, "--batch_size", "1", "--output", output])
    assert f"format {format} needs {package}: pip install 'ddpm-redistill[{extra}]'" in line


def test_executorch(student: str, tmp_path: Path, caplog) -> None:
    pytest.importorskip("executorch")
    from ddpm_redistill.export.executorch_export import call_executorch

    caplog.set_level("INFO", logger="ddpm_redistill")
    path = export_model(student, tmp_path / "a.pte", format="executorch", batch_size=1)
    assert "planned arena: " in caplog.text
    assert difference(load_pipeline(student).unet, call_executorch(path), 1000, 1) <= TOLERANCE
