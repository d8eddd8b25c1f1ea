"""A loss that is no number ends the run at the step where it began; a scaler's overflow is not such a step."""

import math

import pytest
import torch
from accelerate import Accelerator
from test_loop import objective, run_loop, tiny_network
from training_helpers import arguments, metrics

from ddpm_redistill.cli import main
from ddpm_redistill.errors import UserError
from ddpm_redistill.training import loop
from ddpm_redistill.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_redistill.training.finite import FiniteWatch


def spoiled(at: dict[int, float], accumulation: int = 1):
    """The objective, its loss times ``at[step]`` at those steps (from 1)."""
    calls = []

    def bad_objective(network, batch):
        calls.append(1)
        parts = objective(network, batch)
        factor = at.get(math.ceil(len(calls) / accumulation), 1.0)
        return {"task": parts["task"] * factor, "other": parts["task"].detach()}

    return bad_objective


@pytest.mark.parametrize("log_every", [1, 100])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "where"), [(7, "last good checkpoint .*step-000004;?"), (2, "no checkpoint yet")])
def test_the_first_bad_step_is_named_wherever_it_is_noticed(tmp_path, log_every, bad, step, where):
    run = tmp_path / "run"
    parts = rf"\(loss {bad}, task {bad}, other \d.*, grad_norm \w+\)"
    with pytest.raises(UserError, match=rf"not finite at step {step} {parts}; {where}"):
        run_loop(run, objective=spoiled({step: bad}), steps=12, log_every=log_every)
    found = list_checkpoints(run / "checkpoints")
    assert [path.name for path in found] == ["step-000004"][: step // 4]
    for path in found:
        saved = load_checkpoint(path)
        assert all(v.isfinite().all() for part in (saved.model, saved.ema, saved.optimizer) for v in part.values())
    rows = metrics(run) if (run / "metrics.jsonl").exists() else []
    assert all(row["step"] < step and all(map(math.isfinite, row.values())) for row in rows)


def test_a_bad_micro_batch_makes_a_bad_step(tmp_path):
    with pytest.raises(UserError, match="not finite at step 3 "):
        run_loop(tmp_path / "run", objective=spoiled({3: math.nan}, 2), gradient_accumulation=2, log_every=100)


def test_a_gradient_that_is_not_finite_is_a_bad_step_too(tmp_path):
    def steep(network, batch):  # finite at 0, where its slope is not
        parts = objective(network, batch)
        return {"task": parts["task"] + (parts["task"] - parts["task"].detach()).sqrt()}

    with pytest.raises(UserError, match=r"not finite at step 1 \(loss \d.*grad_norm (nan|inf)\)"):
        run_loop(tmp_path / "run", objective=steep, log_every=100)


def test_statistics_that_overflow_under_a_finite_loss_are_not_saved(tmp_path):
    network = tiny_network()
    network.register_buffer("running_var", torch.tensor(math.inf))
    with pytest.raises(UserError, match=r"running_var of the model is not finite after step 4; no checkpoint yet"):
        run_loop(tmp_path / "run", network=network)


def test_the_command_ends_with_one_line_and_not_zero(inputs, tmp_path, capsys):
    training = {"steps": 8, "batch_size": 2, "warmup_steps": 0, "learning_rate": 1e30, "sample_every": 0}
    argv = arguments({**inputs, "output_dir": str(tmp_path / "run"), "training": training})
    with pytest.raises(SystemExit) as ended:
        main(["distill", *argv])
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("ddpm-redistill: error: the loss is not finite at step 2 (loss ")
    assert not (tmp_path / "run" / "student").exists()


def test_the_watch_keeps_the_first_of_several(tmp_path):
    watch = FiniteWatch(torch.device("cpu"))
    for step, value in enumerate([1.0, 2.0, math.inf, math.nan, 3.0], start=1):
        watch.see(step, {"a": torch.tensor(value), "b": torch.tensor(step * 1.5)})
    with pytest.raises(UserError, match=r"step 3 \(a inf, b 4\.5\); no checkpoint yet"):
        watch.check(Accelerator(), tmp_path)


def test_the_watch_sees_steps_of_fewer_parts(tmp_path):
    watch = FiniteWatch(torch.device("cpu"))
    watch.see(1, {"a": torch.tensor(1.0), "b": torch.tensor(1.5)})
    watch.see(2, {"a": torch.tensor(math.nan)})
    with pytest.raises(UserError, match=r"step 2 \(a nan, b 0\)"):
        watch.check(Accelerator(), tmp_path)


def test_a_watch_that_saw_nothing_bad_is_silent(tmp_path):
    watch = FiniteWatch(torch.device("cpu"))
    watch.see(1, {"a": torch.tensor(1e30)})
    watch.check(Accelerator(), tmp_path)


def test_an_overflow_that_the_scaler_handles_is_no_bad_step(tmp_path, monkeypatch):
    true_make = loop.make_accelerator

    def with_scaler(*arguments):
        accelerator = true_make(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
        # Accelerate makes a scaler, and unscales before it clips, on a GPU only.
        accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(accelerator._optimizers[0].optimizer)
        return accelerator

    monkeypatch.setattr("test_loop.make_accelerator", with_scaler)
    before = {name: value.clone() for name, value in tiny_network().state_dict().items()}
    seen = []

    def watched(network, batch):
        seen.append({name: value.cpu().clone() for name, value in network.state_dict().items()})
        return {"task": objective(network, batch)["task"] * 4}  # times 2^127 it is infinite

    run_loop(tmp_path / "run", objective=watched, steps=12)
    rows = metrics(tmp_path / "run")
    scales = [row["loss_scale"] for row in rows]
    skipped = sum(scales[i] < ([2.0**127, *scales])[i] for i in range(12))
    assert 1 <= skipped < 12
    assert scales[skipped - 1 :] == [2.0 ** (127 - skipped)] * (13 - skipped)
    assert all(torch.equal(seen[skipped][name], before[name]) for name in before)  # skipped steps changed nothing
    assert any(not torch.equal(seen[skipped + 1][name], before[name]) for name in before)
    saved = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert saved.state["ema_updates"] == 12 - skipped
