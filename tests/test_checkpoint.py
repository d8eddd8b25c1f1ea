"""Checkpoints: complete or absent, the newest kept, and all that Adam knows in them."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddpm_redistill.core.flat import FlatParameters
from ddpm_redistill.errors import UserError
from ddpm_redistill.training.checkpoint import (
    FILES,
    MANIFEST,
    Checkpoint,
    damage,
    list_checkpoints,
    load_checkpoint,
    newest_intact,
    save_checkpoint,
)
from ddpm_redistill.training.states import optimizer_state, restore_optimizer_state


def checkpoint(step: int, value: float = 0.0) -> Checkpoint:
    return Checkpoint(
        {"w": torch.full((2, 3), value), "count": torch.tensor(step)},
        {"w": torch.full((2, 3), value / 2)},
        {"exp_avg/w": torch.full((2, 3), -value)},
        {"step": step, "scaler": {}, "rate": 0.1},
    )


def names(folder) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_round_trip(tmp_path):
    written = save_checkpoint(tmp_path, checkpoint(5, 1.25), keep=0)
    assert written == tmp_path / "step-000005"
    read = load_checkpoint(written)
    for part in ("model", "ema", "optimizer"):
        wanted, found = getattr(checkpoint(5, 1.25), part), getattr(read, part)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert read.state == checkpoint(5).state


def test_the_format_is_open(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(5, 1.0), keep=0)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    assert torch.equal(load_file(path / "ema.safetensors")["w"], torch.full((2, 3), 0.5))
    assert json.loads((path / "state.json").read_text())["step"] == 5


def test_strided_tensors_keep_their_values(tmp_path):
    strided = torch.arange(6.0).view(2, 3).T
    saved = save_checkpoint(tmp_path, Checkpoint({"w": strided}, {}, {}, {"step": 1}), keep=0)
    assert torch.equal(load_checkpoint(saved).model["w"], strided)


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_only_the_newest_are_kept(tmp_path, keep, left):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, checkpoint(step), keep=keep)
    assert names(tmp_path) == [f"step-{step:06d}" for step in left]
    assert len(list(tmp_path.iterdir())) == len(left)


def test_the_newest_is_known_past_a_million_steps(tmp_path):
    for step in (999_000, 1_000_000):
        save_checkpoint(tmp_path, checkpoint(step), keep=1)
    assert names(tmp_path) == ["step-1000000"]


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_without_one_of_its_files_is_no_checkpoint(tmp_path, missing):
    save_checkpoint(tmp_path, checkpoint(1), keep=0)
    (save_checkpoint(tmp_path, checkpoint(2), keep=0) / missing).unlink()
    assert names(tmp_path) == ["step-000001"]


def test_what_a_kill_left_aside_is_passed_over_and_replaced(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1), keep=0)
    aside = tmp_path / ".writing-step-000002"
    shutil.copytree(tmp_path / "step-000001", aside)
    (aside / "junk").write_text("torn")
    assert names(tmp_path) == ["step-000001"]
    saved = save_checkpoint(tmp_path, checkpoint(2, 2.0), keep=0)
    assert not aside.exists()
    assert sorted(file.name for file in saved.iterdir()) == sorted(FILES)
    assert load_checkpoint(saved).model["w"][0, 0] == 2


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1, 1.0), keep=0)
    saved = save_checkpoint(tmp_path, checkpoint(1, 3.0), keep=0)
    assert load_checkpoint(saved).model["w"][0, 0] == 3
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_never_written(tmp_path, part, bad):
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    poisoned = checkpoint(2)
    next(iter(getattr(poisoned, part).values()))[1, 2] = bad
    with pytest.raises(UserError, match=rf"w of the {part} is not finite after step 2; last good .*step-000001"):
        save_checkpoint(tmp_path, poisoned, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_no_folder_no_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path / "none") == []


# --- damage


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "half of it": (lambda data: data[: len(data) // 2], "bytes, not"),
    "four bytes": (lambda data: data[:4], "has 4 bytes, not"),
    "nothing": (lambda data: b"", "has 0 bytes, not"),
    "longer": (lambda data: data + b" ", "bytes, not"),
    "first byte": (lambda data: flipped(data, 0), "its sha256 differs"),
    "last byte": (lambda data: flipped(data, len(data) - 1), "its sha256 differs"),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES[:-1])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, name, how):
    spoil, wrong = DAMAGE[how]
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step), keep=0)
    assert newest_intact(tmp_path) == tmp_path / "step-000003"
    path = tmp_path / "step-000003" / name
    path.write_bytes(spoil(path.read_bytes()))
    assert newest_intact(tmp_path) == tmp_path / "step-000002"
    (line,) = caplog.messages
    assert f"step-000003 is damaged and passed over: {name} " in line
    assert wrong in line


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, name):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step), keep=0)
    (tmp_path / "step-000002" / name).unlink()
    assert newest_intact(tmp_path) == tmp_path / "step-000001"
    assert [line.split("passed over: ")[1] for line in caplog.messages] == [f"{name} is missing"]


def test_no_byte_of_the_manifest_can_be_wrong_unseen(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(1), keep=0)
    whole = (path / MANIFEST).read_bytes()
    meaning = json.loads(whole)
    for at in range(len(whole)):
        (path / MANIFEST).write_bytes(flipped(whole, at))
        try:
            same = json.loads((path / MANIFEST).read_bytes()) == meaning  # white space
        except ValueError:
            same = False
        assert (damage(path) is None) == same, at


def test_with_none_intact_there_is_nothing_to_go_on_from(tmp_path, caplog):
    for step in (1, 2):
        (save_checkpoint(tmp_path, checkpoint(step), keep=0) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact, of 2 that are there: delete"):
        newest_intact(tmp_path)
    assert [line.split()[1][-11:] for line in caplog.messages] == ["step-000002", "step-000001"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_intact_one_outlives_damaged_ones_of_later_steps(tmp_path, keep):
    for step in (2, 4, 8):
        save_checkpoint(tmp_path, checkpoint(step), keep=0)
    (tmp_path / "step-000008" / "ema.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, checkpoint(6), keep=keep)  # resumed from 4
    assert names(tmp_path) == ["step-000004", "step-000006"][-keep:]
    assert newest_intact(tmp_path) == tmp_path / "step-000006"


# --- a disk that refuses


def test_a_failed_write_leaves_no_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(1), keep=1)

    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")

    monkeypatch.setattr("ddpm_redistill.training.checkpoint.flush", full_disk)
    numbers = r"\(0\.0 MiB are needed, [\d.]+ MiB are free\)"
    with pytest.raises(
        UserError, match=rf"step-000002 could not .*: No space left on device {numbers}; last good .*1:"
    ):
        save_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert damage(tmp_path / "step-000001") is None


# --- Adam


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def step(model: nn.Module, adam: torch.optim.Optimizer, i: int) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(i))
    adam.zero_grad(set_to_none=False)
    model(x).square().mean().backward()
    adam.step()


@pytest.mark.parametrize("fused", [None, True])
def test_a_restored_adam_goes_on_bit_for_bit(tmp_path, fused):
    model = network()
    flat = FlatParameters(dict(model.named_parameters()))
    adam = torch.optim.Adam([flat.vector], lr=0.01, fused=fused)
    assert optimizer_state(adam, flat) == {}
    for i in range(5):
        step(model, adam, i)
    saved = Checkpoint(model.state_dict(), {}, optimizer_state(adam, flat), {"step": 5})
    read = load_checkpoint(save_checkpoint(tmp_path, saved, keep=0))

    other = network()
    other.load_state_dict(read.model)
    flat_other = FlatParameters(dict(other.named_parameters()))
    fresh = torch.optim.Adam([flat_other.vector], lr=0.01, fused=fused)
    restore_optimizer_state(fresh, flat_other, read.optimizer)
    restored = optimizer_state(fresh, flat_other)
    assert restored.keys() == saved.optimizer.keys()
    assert {f"{kind}/0.weight" for kind in ("exp_avg", "exp_avg_sq", "step")} < restored.keys()
    assert {name: value.shape for name, value in restored.items() if name.startswith("exp_avg/")} == {
        f"exp_avg/{name}": parameter.shape for name, parameter in model.named_parameters()
    }
    assert all(torch.equal(restored[key], saved.optimizer[key]) for key in restored)
    for i in range(5, 9):
        step(model, adam, i)
        step(other, fresh, i)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_adam_of_a_checkpoint_by_tensor_goes_on():
    """Checkpoints were written from an optimizer of all tensors, before it was one of a vector: the same files."""
    model, other = network(), network()
    by_tensor = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    flat = FlatParameters(dict(other.named_parameters()))
    adam = torch.optim.Adam([flat.vector], lr=0.01, fused=True)
    for i in range(3):
        step(model, by_tensor, i)
    names = [name for name, _ in model.named_parameters()]
    entries = by_tensor.state_dict()["state"].items()
    other.load_state_dict(model.state_dict())
    restore_optimizer_state(adam, flat, {f"{kind}/{names[i]}": value for i, e in entries for kind, value in e.items()})
    for i in range(3, 6):
        step(model, by_tensor, i)
        step(other, adam, i)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("state", [{"exp_avg/c": torch.zeros(1)}, {"step/0.weight": torch.ones(())}])
def test_an_adam_of_another_network_is_refused(state):
    flat = FlatParameters(dict(network().named_parameters()))
    with pytest.raises(KeyError):
        restore_optimizer_state(torch.optim.Adam([flat.vector]), flat, state)


def test_an_adam_of_other_shapes_is_refused():
    flat = FlatParameters(dict(network().named_parameters()))
    kinds = {f"{kind}/{name}": torch.ones(()) for name in flat.parameters for kind in ("step", "exp_avg", "exp_avg_sq")}
    with pytest.raises(RuntimeError, match="shape"):
        restore_optimizer_state(torch.optim.Adam([flat.vector]), flat, kinds)
