"""The same global batch gives the same run on any number of processes, BatchNorm in RED blocks included."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from process_helpers import BATCH, PROCESSES, Tensors, make_batch, make_blocks, run_blocks, run_on_processes
from safetensors.torch import load_file
from torch import distributed, nn
from training_helpers import TRAIN, UNET_WEIGHTS, arguments, metrics, one_thread_environment, tool

from ddpm_redistill.cli import main
from ddpm_redistill.config import TrainingConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.pipelines.red_block import REDBlock
from ddpm_redistill.processes import on_cpu
from ddpm_redistill.training.batch_norm import share_batch_norms
from ddpm_redistill.training.checkpoint import list_checkpoints
from ddpm_redistill.training.loop import make_accelerator
from ddpm_redistill.training.run_folder import RunFolder

# --- BatchNorm over processes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[Tensors]:
    """What each process found."""
    return run_on_processes(tmp_path_factory.mktemp("processes"))


def test_outputs_gradients_and_statistics_are_those_of_the_whole_batch(shared):
    whole, output = run_blocks(make_blocks(), make_batch()), torch.cat([found["output"] for found in shared])
    torch.testing.assert_close(output, whole.pop("output"), rtol=1e-10, atol=1e-10)
    for name, expected in whole.items():
        for found in shared:
            torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-10)


def test_statistics_of_a_share_alone_are_others():
    whole, part = (run_blocks(make_blocks(), x) for x in (make_batch(), make_batch()[: BATCH // PROCESSES]))
    for name in ("0.gate_conv.weight", "0.gate_norm.running_mean", "0.gate_norm.running_var"):
        assert not torch.allclose(whole[name], part[name], rtol=1e-2), name


def test_half_precision_goes_in_and_out(shared):
    expected = make_blocks().float()[0].gate_norm(make_batch().bfloat16().float())
    found = torch.cat([each["bfloat16"] for each in shared])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_one_process_evaluates_without_the_others(shared):
    assert shared[0]["evaluated"].isfinite().all()


def test_names_and_values_of_the_state_stay():
    blocks = make_blocks()
    before = blocks.state_dict()
    share_batch_norms(blocks)
    assert list(blocks.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in blocks.state_dict().items())


def test_other_norms_stay_as_they_are():
    network = nn.Sequential(nn.GroupNorm(2, 8), REDBlock(8, norm="group"))
    kinds = [type(module) for module in network.modules()]
    share_batch_norms(network)
    assert [type(module) for module in network.modules()] == kinds


def test_what_follows_inside_a_batch_norm_is_kept(monkeypatch):
    """As timm's BatchNormAct2d has its activation; in training and in evaluation, of one process."""

    class Activated(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(8)
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(super().forward(x))

    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(distributed, "all_gather", lambda every, own: every[0].copy_(own))
    norm, shared = Activated(), Activated()
    share_batch_norms(shared)
    x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        found, expected = shared.train(training)(x), norm.train(training)(x)
        torch.testing.assert_close(found, expected)
        assert expected.min() == 0
    torch.testing.assert_close(shared.state_dict(), norm.state_dict())


# --- whole runs: RED BatchNorm, accumulation, loading processes, batches that straddle epochs

TERMS = {"output": 1.0, "red": 1.0}
LOSS = {**TERMS, "feature_share": 1.0}
TRAINING = {**TRAIN, "steps": 9, "batch_size": 8, "gradient_accumulation": 2, "num_workers": 1}


def run_on_cpus(command: list[str], inputs: dict[str, str], folder: Path, *more: str) -> str:
    """``distill`` in processes of its own, on CPUs where there is a GPU too -> what it says."""
    settings = {**inputs, "output_dir": str(folder), "horizontal_flip": True, "training": TRAINING, "loss": LOSS}
    environment = one_thread_environment(ACCELERATE_USE_CPU="true")
    line = [*command, "-m", "ddpm_redistill", "distill", *arguments(settings), *more]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def one_process(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run_on_cpus([sys.executable], inputs, folder)
    return folder


@pytest.fixture(scope="module")
def two_processes(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    said = run_on_cpus([tool("torchrun"), "--nproc_per_node=2", "--standalone"], inputs, folder)
    assert said.count("running 2 process(es)") == 1
    return folder


def assert_like(one: Path, other: Path) -> None:
    """Losses to 1e-6 of themselves, weights to 1e-5, and every row written once."""
    rows, others = metrics(one), metrics(other)
    assert [row["step"] for row in others] == [row["step"] for row in rows] == list(range(1, 10))
    for key in ("loss", *TERMS, "task", "learning_rate"):
        assert [row[key] for row in others] == pytest.approx([row[key] for row in rows], rel=1e-6), key
    last = Path("checkpoints") / list_checkpoints(one / "checkpoints")[-1].name
    for file in (Path("student") / UNET_WEIGHTS, last / "model.safetensors", last / "ema.safetensors"):
        found, expected = load_file(other / file), load_file(one / file)
        assert any(name.endswith("running_var") for name in expected)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_two_processes_give_the_run_of_one(one_process, two_processes):
    assert_like(one_process, two_processes)
    assert len(list((two_processes / "tensorboard").glob("**/events*"))) == 1


def test_a_run_of_two_processes_goes_on_with_one(one_process, two_processes, inputs, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(two_processes, killed, ignore=shutil.ignore_patterns("student", "step-000008", "step-000009"))
    run_on_cpus([sys.executable], inputs, killed, "--resume")
    assert_like(one_process, killed)


# --- GPUs


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert not on_cpu()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started on a machine of 1 GPU: start one a GPU, or set ACC"):
        on_cpu()
    with pytest.raises(UserError, match="2 processes were started"):
        make_accelerator(TrainingConfig(), RunFolder("runs/none"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert on_cpu()


# --- accelerate launch


def test_accelerate_launch_of_two_runs_one_and_says_so(inputs, tmp_path):
    """On CPUs it starts one process whatever it is asked for, and sets the address of a group that there is not."""
    launch = [tool("accelerate"), "launch", "--cpu", "--num_processes", "2", "-m", "ddpm_redistill"]
    sample = ["sample", inputs["teacher"], "--output", str(tmp_path / "out"), "--num_images", "1", "--steps", "1"]
    ended = subprocess.run([*launch, *sample], capture_output=True, text=True, env=one_thread_environment())
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("accelerate launch has started one process") == 1
    line = "for two run ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m ddpm_redistill ..."
    assert ended.stderr.count(line) == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, 0),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 0),  # of one process
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}, 0),
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1"}, 0),  # torchrun
    ],
)
def test_who_is_told_of_accelerate_launch(variables, said, monkeypatch, caplog):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    on_cpu()
    assert len(caplog.messages) == said


# --- a mistake is told once


@pytest.fixture
def second_process(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("RANK", "1")
    return monkeypatch


def test_a_mistake_of_all_processes_is_told_by_the_first(second_process, capsys):
    class Terminated(BaseException):
        pass

    def torchrun_ends_it(seconds: float) -> None:
        raise Terminated

    second_process.setattr(time, "sleep", torchrun_ends_it)
    with pytest.raises(Terminated):
        main(["distill", "--nonsense=1"])
    assert capsys.readouterr().err == ""


def test_a_mistake_of_one_process_is_told_by_it(second_process, capsys):
    second_process.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--nonsense=1"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
