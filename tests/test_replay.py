"""A step compiled by torch or captured as a graph: the images of the step as it is; or a line, and the step as it is.

The graphs are those of ``capture_helpers.py``, which stand for CUDA's.
"""

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_helpers import FakeGraph
from diffusers import DDPMScheduler, UNet2DModel
from test_pipeline import SCHEDULERS, quiet, sample, student_of
from torch import Tensor

from ddpm_redistill import RedDDPMPipeline, StudentConfig, derive_student, plan_student
from ddpm_redistill.pipelines.lean import LEAN_SETTINGS
from ddpm_redistill.pipelines.pipeline_red_ddpm import COMPILE_FROM
from ddpm_redistill.pipelines.red_block import fold_batch_norms
from ddpm_redistill.pipelines.replay import Replay

Graphs = list[FakeGraph]


@pytest.fixture(scope="module")
def networks(tiny_teacher: UNet2DModel) -> dict[str, UNet2DModel]:
    config = StudentConfig(red_norm="group")
    grouped = derive_student(tiny_teacher, plan_student(dict(tiny_teacher.config), config)).eval()
    return {"teacher": tiny_teacher, "student": student_of(tiny_teacher).eval(), "group norms": grouped}


def pipeline_of(unet: UNet2DModel, scheduler: str = "ddim", **options: Any) -> RedDDPMPipeline:
    pipeline = RedDDPMPipeline(unet, DDPMScheduler(), **options).set_scheduler(scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- captured


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("lean", [None, *LEAN_SETTINGS])
@pytest.mark.parametrize("name", ["teacher", "student", "group norms"])
def test_captured_images_are_those_of_the_step_as_it_is(
    captures: Graphs,
    networks: dict[str, UNet2DModel],
    name: str,
    lean: str | None,
    scheduler: str,
) -> None:
    expected = sample(pipeline_of(networks[name], scheduler, lean=lean, compile=False), 5, batch_size=3)
    assert captures == []
    pipeline = pipeline_of(networks[name], scheduler, lean=lean)
    for _ in range(2):
        found = sample(pipeline, 5, batch_size=3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the last batch is filled up: another size
    assert len(captures) == 1  # for both calls and all batches
    assert captures[0].replays == 2 * 2 * 4


@pytest.mark.parametrize("thresholding", [True, False])
def test_limits_of_x0_are_captured(
    captures: Graphs,
    tiny_teacher: UNet2DModel,
    thresholding: bool,
) -> None:
    images = []
    for compile in (False, "auto"):
        pipeline = RedDDPMPipeline(tiny_teacher, DDPMScheduler(thresholding=thresholding), compile=compile)
        pipeline.set_progress_bar_config(disable=True)
        images.append(sample(pipeline.set_scheduler("ddim", eta=0.5), 2))
    assert torch.equal(*images)
    assert len(captures) == 1


def test_one_capture_for_each_kind_of_step_and_shape(captures: Graphs, tiny_teacher: UNet2DModel) -> None:
    pipeline = pipeline_of(tiny_teacher)
    sample(pipeline, 3)
    sample(pipeline, 3, num_inference_steps=7)
    assert len(captures) == 1  # the factors of a step are inputs
    sample(pipeline, 2)
    assert len(captures) == 2
    sample(pipeline.set_scheduler("dpm++"), 2)
    assert len(captures) == 3
    sample(pipeline.set_scheduler("ddim"), 2)
    assert len(captures) == 3


def test_weights_that_are_written_over_are_used_and_others_captured_anew(
    captures: Graphs,
    tiny_teacher: UNet2DModel,
) -> None:
    unet, other = copy.deepcopy(tiny_teacher), copy.deepcopy(tiny_teacher)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.1)
    pipeline = pipeline_of(unet)
    before = sample(pipeline, 2)
    unet.load_state_dict(other.state_dict())
    expected = sample(pipeline_of(other, compile=False), 2)
    assert torch.equal(sample(pipeline, 2), expected)
    assert not torch.equal(before, expected)
    assert len(captures) == 1
    pipeline.register_modules(unet=other)
    assert torch.equal(sample(pipeline, 2), expected)
    assert len(captures) == 2


def test_a_network_whose_layers_are_replaced_is_captured_anew(
    captures: Graphs,
    tiny_teacher: UNet2DModel,
) -> None:
    student = student_of(tiny_teacher).eval()
    pipeline = pipeline_of(student)
    before = sample(pipeline, 2)
    fold_batch_norms(student)
    torch.testing.assert_close(sample(pipeline, 2), before, rtol=0, atol=1e-4)
    assert len(captures) == 2


@pytest.mark.parametrize("wait", ["number", "tensor"])
def test_where_capture_fails_a_line_says_so_and_the_images_are_the_same(
    captures: Graphs,
    tiny_teacher: UNet2DModel,
    caplog: pytest.LogCaptureFixture,
    wait: str,
) -> None:
    unet = copy.deepcopy(tiny_teacher)
    waits = {"number": lambda *_: bool(torch.ones(()) > 0) and None, "tensor": lambda *_: torch.tensor([1.0]) and None}
    unet.conv_in.register_forward_pre_hook(waits[wait])
    found = sample(pipeline_of(unet), 3)
    assert torch.equal(found, sample(pipeline_of(tiny_teacher, compile=False), 3))
    (line,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "without a CUDA graph, whose capture failed: operation not permitted when stream is capturing" in line
    assert "\n" not in line


# --- compiled


@pytest.fixture(scope="module")
def smallest() -> UNet2DModel:
    """Little to compile."""
    kind = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "attention_head_dim": 2}
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(**kind, **size, block_out_channels=(4, 4)).eval()


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["teacher", "student"])
def test_compiled_images_are_those_of_the_step_as_it_is(
    smallest: UNet2DModel, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    unet = smallest if name == "teacher" else student_of(smallest).eval()
    pipeline = pipeline_of(unet, "ddpm", compile=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with caplog.at_level(logging.INFO, "ddpm_redistill"):
        found = sample(pipeline, 5, batch_size=3)
    expected = sample(pipeline_of(unet, "ddpm", compile=False), 5, batch_size=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    (line,) = [record.message for record in caplog.records if record.name == "ddpm_redistill"]  # once, and no warning
    assert "about a minute" in line
    assert "TORCHINDUCTOR_CACHE_DIR" in line
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


def test_where_compilation_fails_a_line_says_so_and_the_images_are_the_same(
    tiny_teacher: UNet2DModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*inputs: Any) -> Any:
        raise RuntimeError("\nno compiler was found\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **options: refuse)
    found = sample(pipeline_of(tiny_teacher, compile=True), 3)
    assert torch.equal(found, sample(quiet(tiny_teacher).set_scheduler("ddim"), 3))
    (line,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == "sampling goes on without compilation, which failed: no compiler was found"


def test_a_compiled_step_is_captured(captures: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: made.append(options) or function)
    run = Replay(lambda x: (x + 1,), compiled=True, captured=True)
    for value in (1.0, 5.0):
        assert torch.equal(run(torch.full((2,), value))[0], torch.full((2,), value + 1))
    assert made == [{"fullgraph": True, "dynamic": False}]
    assert [graph.replays for graph in captures] == [2]


def test_results_are_kept_when_the_graph_is_replayed(captures: Graphs) -> None:
    run = Replay(lambda x, nothing: (2 * x,), captured=True)
    first = run(torch.ones(2), None)[0]
    run(torch.zeros(2), None)
    assert torch.equal(first, torch.full((2,), 2.0))


# --- which of them


def on(device: str, monkeypatch: pytest.MonkeyPatch, unet: UNet2DModel, **options: Any) -> RedDDPMPipeline:
    monkeypatch.setattr(RedDDPMPipeline, "_execution_device", property(lambda self: torch.device(device)))
    return RedDDPMPipeline(unet, DDPMScheduler(), **options)


@pytest.mark.parametrize(
    ("device", "options", "captured", "compiled"),
    [
        ("cpu", {}, False, {0: False, COMPILE_FROM: False}),
        ("cuda", {}, True, {COMPILE_FROM - 1: False, COMPILE_FROM: True}),
        ("cuda", {"lean": True}, True, {COMPILE_FROM: False}),
        ("cuda", {"compile": True}, True, {0: True}),
        ("cuda", {"compile": False}, False, {COMPILE_FROM: False}),
        ("cpu", {"compile": True}, False, {0: True}),
    ],
)
def test_when_a_step_is_captured_and_compiled(
    tiny_teacher: UNet2DModel,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    options: dict[str, Any],
    captured: bool,
    compiled: dict[int, bool],
) -> None:
    pipeline = on(device, monkeypatch, tiny_teacher, **options)
    assert pipeline._captures == captured
    assert {evaluations: pipeline.compiles(evaluations) for evaluations in compiled} == compiled


@pytest.mark.parametrize(("compile", "captured"), [("auto", False), (True, True)])
def test_a_network_with_hooks_is_captured_only_when_told(
    tiny_teacher: UNet2DModel, monkeypatch: pytest.MonkeyPatch, compile: bool | str, captured: bool
) -> None:
    unet = copy.deepcopy(tiny_teacher)
    pipeline = on("cuda", monkeypatch, unet, compile=compile)
    assert pipeline._captures
    handle = unet.up_blocks[1].register_forward_hook(lambda *_: None)
    assert pipeline._captures == captured
    assert pipeline.compiles(COMPILE_FROM) == captured
    handle.remove()
    assert pipeline._captures
    unet._hf_hook = object()  # accelerate moves its weights
    assert not pipeline._captures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "on"}, "unknown compile 'on'"),
        ({"compile": True, "lean": "fast"}, "lean execution is not compiled"),
    ],
)
def test_options_that_are_refused(tiny_teacher: UNet2DModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RedDDPMPipeline(tiny_teacher, DDPMScheduler(), **options)


def test_a_folder_is_opened_with_it(teacher_folder: Path) -> None:
    for compile in ("auto", True, False):
        assert RedDDPMPipeline.from_pretrained(teacher_folder, compile=compile).compile == compile
    assert RedDDPMPipeline.from_pretrained(teacher_folder).compile == "auto"


def test_nothing_waits_for_the_device(tiny_teacher: UNet2DModel, captures: Graphs) -> None:
    """A whole batch, its noise and the reading of the tables included, is enqueued without a number read back."""
    read: list[Any] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                read.append(function)
            return function(*args, **(kwargs or {}))

    for scheduler in SCHEDULERS:
        for compile in (False, "auto"):
            sampler = pipeline_of(tiny_teacher, scheduler, compile=compile).batch_sampler(2, 3)
            sampler.prepare()
            with Watch():
                images: Tensor = sampler(range(14, 16), 0)
            assert read == []
            assert images.shape == (2, 1, 16, 16)
            with Watch():
                images.sum().item()
            assert read.pop()
