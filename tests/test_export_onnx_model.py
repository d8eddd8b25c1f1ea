"""An ONNX file comes in as a stranger's: what is not one of ours is one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from training_helpers import refused

from ddpm_redistill import UserError, load_onnx_pipeline
from ddpm_redistill.sources.onnx_model import open_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def description(**changes: Any) -> dict[str, Any]:
    network = {"sample_size": 4, "in_channels": 1, "out_channels": 1}
    scheduler = json.loads(DDPMScheduler(prediction_type="v_prediction").to_json_string())
    return {"format": 1, "network": network, "scheduler": scheduler, "batch_size": None, **changes}


def write(path: Path, text: str | None, batch: int | str = "batch", timestep: str = "timestep") -> str:
    """A network that adds the timestep to its sample, (batch, 1, 4, 4)."""
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    make = onnx.helper.make_node
    column = onnx.numpy_helper.from_array(torch.tensor([-1, 1, 1, 1]).numpy(), "column")
    nodes = [
        make("Cast", [timestep], ["real"], to=real),
        make("Reshape", ["real", "column"], ["shaped"]),
        make("Add", ["sample", "shaped"], ["prediction"]),
    ]
    shape = [batch, 1, 4, 4]
    value = onnx.helper.make_tensor_value_info
    inputs = [value("sample", real, shape), value(timestep, whole, shape[:1])]
    graph = onnx.helper.make_graph(nodes, "adds", inputs, [value("prediction", real, shape)], [column])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    if text is not None:
        onnx.helper.set_model_props(model, {"ddpm_redistill": text})
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("batch", ["any", 3])
def test_a_batch_of_any_size(tmp_path: Path, batch: int | str) -> None:
    told = description(batch_size=batch if isinstance(batch, int) else None)
    network = open_onnx(write(tmp_path / "a.onnx", json.dumps(told), batch))
    for count in (1, 3, 7):
        sample = torch.rand(count, 1, 4, 4)
        timesteps = torch.arange(count)
        assert torch.equal(network(sample, timesteps).sample, sample + timesteps.view(-1, 1, 1, 1))
        assert torch.equal(network(sample, torch.tensor(5)).sample, sample + 5)


def test_the_noise_schedule_comes_along(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", json.dumps(description()))
    assert load_onnx_pipeline(path).set_scheduler("ddim").scheduler.config.prediction_type == "v_prediction"


SIZES = {"sample_size": 4, "in_channels": 1, "out_channels": 1}
WRONG = [
    (None, "does not say how to sample"),
    ("{", "describes another network than it holds"),
    ("[]", "describes another network than it holds"),
    ("[" * 5000, "describes another network than it holds"),
    (json.dumps({"format": 1}), "'network'"),
    (json.dumps(description(format=2)), "format 2 is not 1"),
    (json.dumps(description(network={**SIZES, "sample_size": 8})), "the shape is [None, 1, 4, 4], not [None, 1, 8, 8]"),
    (json.dumps(description(network={**SIZES, "sample_size": "4"})), "describes another network than it holds"),
    (json.dumps(description(network={**SIZES, "out_channels": 10**9})), "1000000000 is no size"),
    (json.dumps(description(batch_size=2)), "not [2, 1, 4, 4]"),
    (json.dumps(description(batch_size=-2)), "-2 is no size"),
    (json.dumps(description(scheduler=[])), "describes another network than it holds"),
    (json.dumps(description(scheduler={"num_train_timesteps": 10**9})), "num_train_timesteps 1000000000"),
    (json.dumps(description(scheduler={"prediction_type": "flow"})), "its prediction_type is flow"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_a_wrong_description(tmp_path: Path, capsys, caplog, text: str | None, words: str) -> None:
    path = write(tmp_path / "a.onnx", text)
    line = refused(capsys, caplog, ["sample", path, "--output", str(tmp_path / "images"), "--num_images", "1"])
    assert words in line
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_files_that_are_no_onnx(tmp_path: Path, capfd) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(UserError, match=r"onnxruntime cannot read .*text\.onnx"):
        open_onnx(str(tmp_path / "text.onnx"))
    with pytest.raises(UserError, match="there is no file"):
        open_onnx(str(tmp_path / "nowhere.onnx"))
    other = write(tmp_path / "other.onnx", json.dumps(description()), timestep="t")
    with pytest.raises(UserError, match="the inputs are sample, t"):
        open_onnx(other)
    assert capfd.readouterr() == ("", "")  # onnxruntime's own log


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.onnx", json.dumps(description()))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'ddpm-redistill\[export\]'"):
        open_onnx(path)


@pytest.mark.parametrize("option", [["--lean", "fast"], ["--dtype", "bfloat16"], ["--compile", "on"]])
def test_options_of_networks_in_torch(tmp_path: Path, capsys, caplog, option: list[str]) -> None:
    path = write(tmp_path / "a.onnx", json.dumps(description()))
    line = refused(capsys, caplog, ["sample", path, "--output", str(tmp_path / "images"), *option])
    assert "runs as it was exported: leave out lean, dtype and compile" in line


def test_unknown_scheduler(tmp_path: Path, capsys, caplog) -> None:
    path = write(tmp_path / "a.onnx", json.dumps(description()))
    argv = ["sample", path, "--output", str(tmp_path / "images"), "--scheduler", "euler"]
    assert "unknown scheduler 'euler'" in refused(capsys, caplog, argv)
