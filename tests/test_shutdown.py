"""SIGTERM and Ctrl-C: the step in hand is finished, a checkpoint written, the exit code says which signal it was."""

import os
import signal
import subprocess
import time

import pytest
from accelerate import Accelerator
from test_loop import objective, run_loop
from training_helpers import (
    arguments,
    assert_same_checkpoints,
    distill_config,
    metrics,
    one_thread_environment,
    tool,
)

from ddpm_redistill.training.checkpoint import damage, list_checkpoints
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.shutdown import Shutdown, Stopped


def stopping(number: int, step: int):
    """The objective; at ``step`` (from 1) this process gets a signal."""
    calls = []

    def objective_with_signal(network, batch):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return objective(network, batch)

    return objective_with_signal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_the_step_in_hand(tmp_path, caplog, number, code):
    run_loop(tmp_path / "one", log_every=2)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as ended:
        run_loop(tmp_path / "run", objective=stopping(number, 3), log_every=2)
    assert ended.value.code == code
    assert signal.getsignal(number) == before
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.name == "step-000003"
    assert damage(saved) is None
    name = signal.Signals(number).name
    assert caplog.messages == [f"stopped by {name} after step 3, saved as {saved}: go on with --resume"]
    assert [row["step"] for row in metrics(tmp_path / "run")] == [2]  # no row that another run would not have
    run_loop(tmp_path / "run", resume=True, log_every=2)
    assert_same_checkpoints(tmp_path / "one", tmp_path / "run")


def test_signals_that_come_together_are_one_and_a_later_one_ends_at_once(monkeypatch, capfd):
    killed = []
    with Shutdown(Accelerator()) as shutdown:
        assert shutdown.requested() == 0
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert shutdown.requested() == signal.SIGINT
        monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 1)
        shutdown._remember(signal.SIGINT, None)
        assert killed == [(os.getpid(), signal.SIGINT)]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert capfd.readouterr().err == "\nstopping after this step, with a checkpoint; once more to stop at once\n"


def test_two_processes_stop_at_the_same_step_when_one_gets_the_signal_and_one_process_goes_on(inputs, tmp_path):
    run, one = tmp_path / "run", tmp_path / "one"
    changes = {"loss": {"output": 1.0, "red": 0.0, "feature_share": 1.0}, "student": {"red_placement": "none"}}
    settings = {**inputs, "output_dir": str(run), "horizontal_flip": True, **changes}
    training = {**vars(distill_config(inputs, run, steps=5000, checkpoint_every=5000, schedule="constant").training)}
    argv = [*arguments({**settings, "training": training})]
    command = [tool("torchrun"), "--nproc_per_node", "2", "--standalone", "-m", "ddpm_redistill", "distill", *argv]
    environment = one_thread_environment(ACCELERATE_USE_CPU="true")
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not metrics(run):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    listed = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    workers = [int(pid) for pid in subprocess.run(listed, capture_output=True, text=True).stdout.split()]
    os.kill(workers[-1], signal.SIGTERM)
    err = process.communicate(timeout=120)[1]
    (saved,) = list_checkpoints(run / "checkpoints")
    step = int(saved.name[5:])
    assert err.count(f"stopped by SIGTERM after step {step}, saved as {saved}") == 1
    assert err.count("Traceback") == 0 or "exitcode  : 143" in err  # torchrun's own, of what its processes ended with
    assert len(metrics(run)) == step
    ends = {"steps": step + 2, "checkpoint_every": 5000, "schedule": "constant", **changes}
    distill(distill_config(inputs, run, **ends), resume_anyway=True)
    distill(distill_config(inputs, one, **ends))
    assert [row["step"] for row in metrics(run)] == list(range(1, step + 3))
    for a, b in zip(metrics(run), metrics(one), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
