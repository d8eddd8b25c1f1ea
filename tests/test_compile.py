"""A compiled training step is the eager one to rounding, resumes as it does, and gives way to it where it fails."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_loop import run_loop, tiny_network
from torch._dynamo.utils import counters
from training_helpers import Killed, assert_same_run, distill_config, kill_at, make_tiny_teacher, metrics

from ddpm_redistill.config import DistillConfig, TrainingConfig
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.gradient import how_to_compile

STEPS = 50
TWO_LEVELS = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "norm_num_groups": 2,
    "add_attention": False,
}
LOSS = {"red": 10.0, "feature_share": 0.5}


@pytest.fixture(scope="module", autouse=True)
def compiling() -> Iterator[None]:
    """On a GPU too, where the other tests run eagerly."""
    with torch._dynamo.config.patch(disable=False):
        yield


@pytest.fixture(scope="module")
def small(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher whose compilation takes seconds."""
    return {**inputs, "teacher": str(make_tiny_teacher(tmp_path_factory.mktemp("small"), **TWO_LEVELS))}


def config_of(small: dict[str, str], run: Path, compile: str) -> DistillConfig:
    return distill_config(
        small, run, loss=LOSS, steps=STEPS, compile=compile, gradient_accumulation=2, checkpoint_every=10
    )


@pytest.fixture(scope="module")
def compiled(small: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("compiled")
    counters.clear()
    distill(config_of(small, run, "default"))
    assert counters["stats"]["unique_graphs"] == 2  # a whole one for the steps with maps, one for those without
    assert not counters["graph_break"]
    return run


def test_a_compiled_run_is_the_eager_one(small, compiled, tmp_path):
    distill(config_of(small, tmp_path / "eager", "off"))
    rows, expected = metrics(compiled), metrics(tmp_path / "eager")
    assert len(rows) == STEPS
    assert ["red" in row for row in rows] == [True] * (STEPS // 2) + [False] * (STEPS // 2)
    for key in ("loss", "task", "red", "grad_norm"):
        found = [row[key] for row in rows if key in row]
        assert found == pytest.approx([row[key] for row in expected if key in row], rel=1e-4), key
    assert rows != expected  # it is another order of operations: the comparison can tell them apart


def test_a_compiled_run_that_is_killed_goes_on_to_the_same_bytes(small, compiled, tmp_path, monkeypatch):
    config = config_of(small, tmp_path / "killed", "default")
    with monkeypatch.context() as patch:
        kill_at(patch, 22)  # it goes on from step 20, and at 25 the terms on maps end
        with pytest.raises(Killed):
            distill(config)
    distill(config, resume=True)
    assert_same_run(compiled, tmp_path / "killed")


def test_where_compilation_fails_the_run_is_the_eager_one(tmp_path, monkeypatch, caplog):
    """It has run the batch half by then: statistics and dropout must not count it twice."""

    class Counting(torch.nn.BatchNorm2d):
        pass

    def network():
        made = tiny_network()
        made.conv_norm_out = torch.nn.Sequential(Counting(4), torch.nn.Dropout(0.5))
        return made

    def broken(function, **options):
        def call(batch):
            function(batch)
            raise RuntimeError("no such compiler\nhere" + 200 * ".")

        return call

    run_loop(tmp_path / "eager", network=network(), compile="off")
    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.INFO, "ddpm_redistill"):
        run_loop(tmp_path / "broken", network=network(), compile="default")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "eager")
    said = [record.message for record in caplog.records if "compil" in record.message]
    cut = ("RuntimeError: no such compiler here" + 200 * ".")[:200]
    assert said == [
        "compiling the training step: a minute or more; torch caches what it compiles",
        f"the training step cannot be compiled ({cut}): it goes on eagerly",
    ]


def test_a_mistake_of_the_objective_is_not_taken_for_one_of_the_compiler(tmp_path, monkeypatch):
    def failing(network, batch):
        raise ValueError("the objective's own")

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.raises(ValueError, match="the objective's own"):
        run_loop(tmp_path / "run", objective=failing, compile="default")


@pytest.mark.parametrize(
    ("compile", "steps", "device", "expected"),
    [
        ("auto", 9000, "cpu", "off"),
        ("auto", 9000, "cuda", "default"),
        ("auto", 2000, "cuda", "cudagraphs"),
        ("off", 9000, "cuda", "off"),
        ("default", 10, "cpu", "default"),
    ],
)
def test_how_a_run_is_compiled(compile, steps, device, expected):
    assert how_to_compile(TrainingConfig(compile=compile, steps=steps), torch.device(device)) == expected


def test_a_captured_run_is_the_eager_one(small, tmp_path):
    """On a CPU torch traces the step as it does for CUDA graphs, and captures nothing."""
    for how in ("off", "cudagraphs"):
        distill(distill_config(small, tmp_path / how, loss=LOSS, steps=8, compile=how))
    rows, expected = metrics(tmp_path / "cudagraphs"), metrics(tmp_path / "off")
    for key in ("loss", "red", "grad_norm"):
        found = [row[key] for row in rows if key in row]
        assert found == pytest.approx([row[key] for row in expected if key in row], rel=1e-4), key
