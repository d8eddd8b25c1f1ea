"""The memory limit of benchmarks/edge_budget.py refuses what is over it, and what it lets through is right."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from diffusers import DDPMScheduler

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHAPE = (16, 3, 256, 256)
MIB = 2**20


@pytest.fixture(scope="module")
def edge() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "edge_budget.py"
    spec = importlib.util.spec_from_file_location("edge_budget", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A network that halves its sample and takes no notice of the time, described as one of ours."""
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    half = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half")
    nodes = [
        onnx.helper.make_node("Cast", ["timestep"], ["real"], to=real),
        onnx.helper.make_node("Mul", ["sample", "half"], ["prediction"]),
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [value("sample", real, SHAPE), value("timestep", whole, SHAPE[:1])]
    graph = onnx.helper.make_graph(nodes, "halves", inputs, [value("prediction", real, SHAPE)], [half])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    network = {"sample_size": SHAPE[2], "in_channels": 3, "out_channels": 3}
    scheduler = json.loads(DDPMScheduler().to_json_string())
    told = {"format": 1, "network": network, "scheduler": scheduler, "batch_size": SHAPE[0]}
    onnx.helper.set_model_props(model, {"ddpm_redistill": json.dumps(told)})
    onnx.save(model, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def test_the_limit_lets_through_and_refuses(edge: ModuleType, file: Path, tmp_path: Path) -> None:
    noise, output = tmp_path / "noise.npy", tmp_path / "images.npy"
    start = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    np.save(noise, start)
    free = edge.run(file, noise, output, 3)
    assert free["VmPeak"] >= free["VmHWM"] > start.nbytes
    output.unlink()
    assert edge.run(file, noise, output, 3, free["VmPeak"] - 12 * MIB) == {}  # less than one image batch too little
    assert not output.exists()
    inside = edge.run(file, noise, output, 3, free["VmPeak"] + 64 * MIB)
    assert start.nbytes < inside["VmPeak"] <= free["VmPeak"] + 64 * MIB
    assert np.abs(np.load(output) - edge.by_diffusers(file, start, 3)).max() < 1e-5


def test_another_failure_is_no_refusal(edge: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        edge.run(tmp_path / "nowhere.onnx", tmp_path / "a.npy", tmp_path / "b.npy", 1, 2**40)
