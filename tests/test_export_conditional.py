"""A class-conditional network in another format: class labels are its third input, and its file knows the classes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from export_helpers import ID2LABEL, NULL, make_conditional_student, make_student
from image_helpers import solid
from PIL import Image
from training_helpers import SIZE, make_images, refused

from ddpm_redistill import UserError, export_model, load_onnx_pipeline, load_pipeline, open_images
from ddpm_redistill.cli import main
from ddpm_redistill.export.description import describe
from ddpm_redistill.export.torch_export import call_torch_export
from ddpm_redistill.export.verify import INPUTS, TOLERANCE, difference, label_of
from ddpm_redistill.pipelines.conditioning import Conditioning

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from ddpm_redistill.export import onnx_export, quantise  # noqa: E402  # needs what is skipped without

STATIC = 3
TOLD = {"num_class_embeds": NULL + 1, "id2label": ID2LABEL, "learned_guidance": None}
"""What a file says of its classes."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_conditional_student(tmp_path_factory.mktemp("model") / "student"))


@pytest.fixture(scope="module")
def files(student: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "onnx": export_model(student, folder / "any.onnx", format="onnx"),
        "torch_export": export_model(student, folder / "static.pt2", format="torch_export", batch_size=STATIC),
    }


@pytest.fixture
def ready(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An export to ONNX takes the file that is there: torch's exporter needs seconds."""
    there = files["onnx"]
    monkeypatch.setattr("ddpm_redistill.export.ddpm.trace", lambda unet, batch_size: None)
    monkeypatch.setattr(
        onnx_export, "write_onnx", lambda program, path, description, opset, output: shutil.copy(there, path)
    )


def called(name: str, path: Path) -> Any:
    return call_torch_export(path) if name == "torch_export" else onnx_export.call_onnx(path)


def of_classes(description: dict[str, Any]) -> dict[str, Any]:
    """The part of a description that ``TOLD`` is of."""
    return {key: {**description["network"], **description}[key] for key in TOLD}


# --- the file


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_the_outputs_are_the_originals(student: str, files: dict[str, Path], name: str) -> None:
    unet, exported = load_pipeline(student).unet, called(name, files[name])
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 70) if name == "onnx" else (STATIC,):
        sample = torch.randn(count, 1, SIZE, SIZE, generator=generator)
        timestep = torch.randint(1000, (count,), generator=generator)
        labels = torch.arange(NULL, NULL - count, -1) % (NULL + 1)  # the null class first
        with torch.no_grad():
            expected = unet(sample, timestep, labels).sample
        found = exported(sample, timestep, labels)
        assert found.shape == (count, 1, SIZE, SIZE)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        other = exported(sample, timestep, (labels + 1) % (NULL + 1))
        assert (found - other).abs().amax((1, 2, 3)).min() > 1e-2 * expected.abs().max()


def test_inputs_and_description(files: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(files["onnx"])
    batch = session.get_inputs()[0].shape[0]
    assert isinstance(batch, str)  # the name of a size that is open
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("sample", "tensor(float)", [batch, 1, SIZE, SIZE]),
        ("timestep", "tensor(int64)", [batch]),
        ("class_labels", "tensor(int64)", [batch]),
    ]
    assert of_classes(json.loads(session.get_modelmeta().custom_metadata_map["ddpm_redistill"])) == TOLD
    extra = {"ddpm_redistill.json": ""}
    program = torch.export.load(files["torch_export"], extra_files=extra)
    assert program.graph_signature.user_inputs == ("sample", "timestep", "class_labels")
    assert of_classes(json.loads(extra["ddpm_redistill.json"])) == TOLD


def test_a_description_without_classes_says_nothing_of_them(tmp_path: Path) -> None:
    found = describe(load_pipeline(str(make_student(tmp_path / "student"))), None, "0" * 64)
    assert found.keys() == {"format", "network", "scheduler", "batch_size", "model_sha256", "made_by"}
    assert found["network"] == {"sample_size": SIZE, "in_channels": 1, "out_channels": 1}


def test_executorch(student: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    from executorch.runtime import Runtime

    from ddpm_redistill.export.executorch_export import call_executorch
    from ddpm_redistill.export.program_file import open_program

    path = export_model(student, tmp_path / "a.pte", format="executorch", batch_size=2)
    assert difference(load_pipeline(student).unet, call_executorch(path), 1000, 2) <= TOLERANCE
    text = Runtime.get().load_program(path).load_method("ddpm_redistill").execute([])[0]
    assert of_classes(json.loads(text)) == TOLD
    assert open_program(str(path)).batch_size == 2


# --- the check


@pytest.mark.parametrize("count", [1, 2, 4, 11, 1001])
def test_the_check_goes_over_the_labels(count: int) -> None:
    for first in (0, 13):
        labels = {label_of(index, count) for index in range(first, first + INPUTS)}
        assert len(labels) == min(count, INPUTS)
        assert {0, count - 1} <= labels <= set(range(count))


def test_difference_finds_a_wrong_class(student: str) -> None:
    unet = load_pipeline(student).unet

    def call(of: Any) -> Any:
        return lambda sample, timestep, labels: unet(sample, timestep, of(labels)).sample

    assert difference(unet, call(lambda labels: labels), 1000) == 0
    for wrong in (0, NULL):  # a label, or the null class, that has the embedding of another
        assert difference(unet, call(lambda labels, at=wrong: torch.where(labels == at, 1, labels)), 1000) > 1e-2


# --- sampling from the file


@pytest.mark.parametrize(("scheduler", "guidance"), [("ddpm", None), ("ddim", 2.5), ("dpm++", 2.5)])
def test_onnxruntime_samples_the_same_images(
    student: str, files: dict[str, Path], scheduler: str, guidance: float | None
) -> None:
    pipelines = [load_pipeline(student), load_onnx_pipeline(str(files["onnx"]))]
    assert pipelines[0].conditioning == pipelines[1].conditioning == Conditioning(("cat", "dog", "emu"), NULL)
    options = {"seed": 5, "num_inference_steps": 3, "batch_size": 5, "output_type": "pt", "class_labels": [2, 0]}
    found = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        pipeline.set_scheduler(scheduler)
        found.append(pipeline(7, guidance_scale=guidance, **options).images)
    assert found[0].shape == (7, 1, SIZE, SIZE)
    assert (found[0] - found[1]).abs().max() <= 1e-3
    other = pipelines[1](7, **{**options, "class_labels": [0, 2]}, guidance_scale=guidance).images
    assert (found[1] - other).abs().amax((1, 2, 3)).min() > 1e-2


def test_a_file_of_one_batch_size(tmp_path: Path) -> None:
    """Labels are cut and filled up with the samples; with guidance a batch is twice as large."""
    paths = [adds(tmp_path / "any.onnx", None), adds(tmp_path / "static.onnx", STATIC)]
    pipelines = [load_onnx_pipeline(path).set_scheduler("ddim") for path in paths]
    network = pipelines[1].unet
    for count in (1, 3, 7):
        sample, labels = torch.rand(count, 1, 4, 4), torch.arange(count)
        added = (5 + 1000 * labels.view(-1, 1, 1, 1)) / 8192
        assert torch.equal(network(sample, 5, labels).sample, sample + added)
    for guidance in (None, 3.0):
        options = {"seed": 5, "num_inference_steps": 3, "batch_size": 5, "output_type": "pt", "class_labels": [2, 0]}
        one, other = (pipeline(7, guidance_scale=guidance, **options).images for pipeline in pipelines)
        assert torch.equal(one, other)
        swapped = pipelines[1](7, guidance_scale=guidance, **{**options, "class_labels": [0, 2]}).images
        assert ((one - swapped).abs().amax((1, 2, 3)) > 0.05).all()


def adds(path: Path, batch: int | None) -> str:
    """A network that adds (timestep + 1000 label) / 8192 to its sample, (batch, 1, 4, 4), for its prediction of x_0."""
    real, whole, make = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.helper.make_node
    constants = {"thousand": np.array(1000), "scale": np.float32([1 / 8192]), "column": np.array([-1, 1, 1, 1])}
    nodes = [
        make("Mul", ["class_labels", "thousand"], ["far"]),
        make("Add", ["timestep", "far"], ["whole"]),
        make("Cast", ["whole"], ["real"], to=real),
        make("Mul", ["real", "scale"], ["scaled"]),
        make("Reshape", ["scaled", "column"], ["shaped"]),
        make("Add", ["sample", "shaped"], ["prediction"]),
    ]
    shape, value = [batch or "any", 1, 4, 4], onnx.helper.make_tensor_value_info
    inputs = [value("sample", real, shape), *(value(name, whole, shape[:1]) for name in ("timestep", "class_labels"))]
    initial = [onnx.numpy_helper.from_array(each, name) for name, each in constants.items()]
    graph = onnx.helper.make_graph(nodes, "adds", inputs, [value("prediction", real, shape)], initial)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    network = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "num_class_embeds": NULL + 1}
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False)
    told = {"format": 1, "network": network, "scheduler": json.loads(scheduler.to_json_string())}
    told |= {"batch_size": batch, "id2label": ID2LABEL, "learned_guidance": None}
    onnx.helper.set_model_props(model, {"ddpm_redistill": json.dumps(told)})
    onnx.save(model, path)
    return str(path)


def test_the_verb_samples_as_from_the_folder(student: str, files: dict[str, Path], tmp_path: Path) -> None:
    argv = ["--num_images", "5", "--batch_size", "4", "--steps", "2", "--labels", "0,2", "--guidance", "1.5"]
    for name, model in (("folder", student), ("file", str(files["onnx"]))):
        main(["sample", model, "--output", str(tmp_path / name), *argv])
    for k in range(5):
        pixels = [np.asarray(Image.open(tmp_path / name / f"{k:06}.png"), int) for name in ("folder", "file")]
        assert pixels[0].shape == (SIZE, SIZE)
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
    settings = json.loads((tmp_path / "file" / "sampling.json").read_text())
    assert (settings["labels"], settings["guidance"], settings["classes"]) == ([0, 2], 1.5, list(ID2LABEL.values()))


def described(file: Path, copy: Path, network: dict[str, Any], **changes: Any) -> str:
    """The same network with another description."""
    model = onnx.load(file)
    told = json.loads({each.key: each.value for each in model.metadata_props}["ddpm_redistill"])
    told |= changes
    told["network"] = {key: value for key, value in {**told["network"], **network}.items() if value != "absent"}
    onnx.helper.set_model_props(model, {"ddpm_redistill": json.dumps(told)})
    onnx.save(model, copy)
    return str(copy)


def test_what_was_learned_comes_along(files: dict[str, Path], tmp_path: Path, capsys: Any, caplog: Any) -> None:
    path = described(files["onnx"], tmp_path / "a.onnx", {}, learned_guidance=1.5)
    assert load_onnx_pipeline(path).conditioning == Conditioning(("cat", "dog", "emu"), NULL, 1.5)
    argv = ["sample", path, "--output", str(tmp_path / "images"), "--num_images", "1", "--steps", "2"]
    assert "this model has learned guidance 1.5" in refused(capsys, caplog, [*argv, "--guidance", "3"])
    assert "label 3 is none of this model's 3 classes" in refused(capsys, caplog, [*argv, "--labels", "3"])
    main([*argv, "--guidance", "1.5"])
    assert (tmp_path / "images" / "000000.png").is_file()


WRONG = [
    ({"num_class_embeds": "absent"}, {"id2label": None}, "the inputs are sample, timestep, class_labels"),
    ({"num_class_embeds": "absent"}, {}, "num_class_embeds is not set"),
    ({"num_class_embeds": 0}, {}, "0 is no number of class embeddings"),
    ({"num_class_embeds": None}, {}, "None is no number of class embeddings"),
    ({"num_class_embeds": 10**7}, {}, "10000000 is no number of class embeddings"),
    ({}, {"id2label": ["cat", "dog", "emu"]}, "id2label must be an object"),
    ({}, {"id2label": {"0": "cat"}}, "id2label names 1 classes for 4 embeddings"),
    ({}, {"learned_guidance": float("nan")}, "learned_guidance must be a finite number"),
    ({}, {"learned_guidance": "2"}, "learned_guidance must be a finite number"),
]


@pytest.mark.parametrize(("network", "changes", "words"), WRONG)
def test_a_wrong_description(files: dict[str, Path], tmp_path: Path, network: Any, changes: Any, words: str) -> None:
    path = described(files["onnx"], tmp_path / "a.onnx", network, **changes)
    with pytest.raises(UserError, match="describes another network than it holds: ") as caught:
        load_onnx_pipeline(path)
    assert words in str(caught.value)


# --- calibration


def labelled(folder: Path, names: tuple[str, ...]) -> str:
    """Images in a folder for each class; those of class k are grey of the value 100 k."""
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            solid(100 * k, (SIZE, SIZE)).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("batch_size", [None, 8])
def test_calibration_images_have_their_labels(tmp_path: Path, batch_size: int | None) -> None:
    images = open_images(labelled(tmp_path, ("a", "b", "c")), image_size=SIZE, channels=1)
    scheduler = DDPMScheduler(beta_start=1e-9, beta_end=1e-9)  # next to no noise, so that images can be told apart
    labels = torch.tensor([2, 0, 1])[images.labels]
    for null in (None, 7):
        feeds = list(
            quantise.calibration_feeds(images, scheduler, count=24, batch_size=batch_size, labels=labels, null=null)
        )
        found = np.concatenate([feed["class_labels"] for feed in feeds])
        assert (found.dtype, found.shape) == (np.int64, (24,))
        grey = np.concatenate([feed["sample"] for feed in feeds]).mean((1, 2, 3)) * 127.5 + 127.5
        expected = np.array([2, 0, 1])[np.rint(grey / 100).astype(int)]
        if null is not None:
            expected[9::10] = null
        assert (found == expected).all()
        assert len(set(found)) == 3 + (null is not None)


@pytest.mark.parametrize(("learned", "expected"), [(None, {0, 2, NULL}), (1.5, {0, 2})])
def test_the_datas_labels_are_calibrated_on(
    ready: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: float | None, expected: set[int]
) -> None:
    """By the names of the classes; and the null class where guidance may run the network with it."""
    student = str(make_conditional_student(tmp_path / "student", learned))
    data, fed = labelled(tmp_path / "data", ("cat", "emu")), []
    monkeypatch.setattr(quantise, "quantise", lambda path, kind, feeds: fed.extend(feeds))
    options = {"quantise": "int8", "data": data, "calibration_images": 20}
    export_model(student, tmp_path / "a.onnx", format="onnx", **options)
    assert set(np.concatenate([feed["class_labels"] for feed in fed])) == expected


def test_int8(student: str, ready: None, tmp_path: Path) -> None:
    path, data = tmp_path / "a.onnx", labelled(tmp_path / "data", ("cat", "dog", "emu"))
    argv = ["export", student, "--format", "onnx", "--quantise", "int8", "--data", data, "--calibration_images", "24"]
    main([*argv, "--output", str(path)])
    assert "int8" in {str(onnx.numpy_helper.to_array(each).dtype) for each in onnx.load(path).graph.initializer}
    assert load_onnx_pipeline(str(path)).conditioning == load_pipeline(student).conditioning
    error = difference(load_pipeline(student).unet, onnx_export.call_onnx(path), 1000)
    assert TOLERANCE < error < 0.5


def test_data_without_the_classes(student: str, ready: None, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    argv = ["export", student, "--format", "onnx", "--quantise", "int8", "--output", str(tmp_path / "a.onnx")]
    plain = str(make_images(tmp_path / "images.npz"))
    assert "is class-conditional, and 10 images" in (line := refused(capsys, caplog, [*argv, "--data", plain]))
    assert "have no labels: give a folder with a folder for each class" in line
    strange = labelled(tmp_path / "data", ("cat", "yak"))
    assert "class 'yak' is none of the 3 of" in refused(capsys, caplog, [*argv, "--data", strange])
    assert not (tmp_path / "a.onnx").exists()
