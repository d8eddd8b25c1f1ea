"""A classifier as a file for other runtimes: the outputs of the original, and what is said beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_runs import SIZE, make_labelled
from torch import nn

from ddpm_redistill import StudentConfig, export_model, load_classifier, plan_student
from ddpm_redistill.cli import main
from ddpm_redistill.export.classifier import classifier_difference, folded
from ddpm_redistill.export.program_file import open_program
from ddpm_redistill.export.torch_export import call_torch_export
from ddpm_redistill.export.verify import TOLERANCE
from ddpm_redistill.families.classifier_files import build, find_config, save_classifier
from ddpm_redistill.students.derive import build_student

CLASSES = ("cat", "dog", "emu")
MEAN, STD = (0.3,), (0.2,)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher and its student, whose BatchNorms are far from doing nothing."""
    place = tmp_path_factory.mktemp("models")
    asked = find_config("wrn:10-1", image_size=SIZE, num_classes=3, in_channels=1)
    told = {**asked.to_dict(), "mean": list(MEAN), "std": list(STD), "classes": list(CLASSES)}
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from ddpm_redistill.families.classifier_config import config_from_dict

        config = config_from_dict(told, "the teacher")
        networks: dict[str, Any] = {
            "teacher": build(config),
            "student": build_student(told, plan_student(told, StudentConfig())),
        }
        for name, network in networks.items():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    for value in (module.weight, module.bias, module.running_mean, module.running_var):
                        nn.init.uniform_(value, 0.5, 1.5)
            save_classifier(network, config_from_dict(dict(network.config), name), place / name)
            found[name] = str(place / name)
    return found


def test_batch_norms_are_folded(folders):
    network, config = load_classifier(folders["student"])
    before = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    made = folded(network)
    after = sum(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    red = sum(type(module).__name__ == "REDBlock" for module in network.modules())
    assert red == 3
    assert after < before - 2 * red  # the classifier's own behind convolutions too
    assert 0 < classifier_difference(network, config, made, None) <= 1e-5
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == before


def test_torch_export_gives_the_outputs(folders, tmp_path):
    path = export_model(folders["student"], tmp_path / "a.pt2", format="torch_export")
    network, config = load_classifier(folders["student"])
    call = call_torch_export(path)
    images = torch.randn(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(call(images), network(images), rtol=1e-4, atol=1e-5)
    assert classifier_difference(network, config, lambda x: call(x) + 1, None) > TOLERANCE
    assert classifier_difference(network, config, lambda x: call(x) * float("nan"), None) != 0


def test_onnx_says_what_its_input_is(folders, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    main(["export", folders["student"], "--format", "onnx", "--output", str(path)])
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["images"]
    assert [each.name for each in session.get_outputs()] == ["logits"]
    told = json.loads(session.get_modelmeta().custom_metadata_map["ddpm_redistill"])
    assert told["network"] == {"sample_size": SIZE, "in_channels": 1, "num_classes": 3}
    assert told["input"] == {"pixels": [0, 1], "mean": pytest.approx(MEAN), "std": pytest.approx(STD)}
    assert told["classes"] == list(CLASSES)
    images = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_classifier(folders["student"])[0](images)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected)
    with pytest.raises(SystemExit):
        main(["sample", str(path), "--output", str(tmp_path / "out")])
    assert "is a classifier: a DDPM is needed here" in capsys.readouterr().err

    data = make_labelled(tmp_path / "data.npz", 24)
    for kind, more in (("int8_weights", {}), ("int8", {"data": str(data), "calibration_images": 20})):
        small: Path = export_model(folders["student"], tmp_path / f"{kind}.onnx", format="onnx", quantise=kind, **more)
        kinds = {tensor.data_type for tensor in onnx.load(small).graph.initializer}
        assert onnx.TensorProto.INT8 in kinds
        assert small.stat().st_size < path.stat().st_size


def test_a_program_has_a_smaller_arena_than_its_teachers(folders, tmp_path, capsys):
    pytest.importorskip("executorch")
    paths = {
        name: export_model(ref, tmp_path / f"{name}.pte", format="executorch", batch_size=1)
        for name, ref in folders.items()
    }
    arenas = {name: open_program(str(path)).memory["planned_arena"] for name, path in paths.items()}
    assert arenas["student"] < arenas["teacher"]
    main(["memory", str(paths["student"]), "--teacher", str(paths["teacher"])])
    assert "planned_arena" in capsys.readouterr().out
