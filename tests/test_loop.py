"""The loop by itself: modules of the loss that are trained with the network."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn
from training_helpers import TRAIN, Killed, assert_same_checkpoints, kill_at, metrics

from ddpm_redistill.config import TrainingConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_redistill.training.denoise import Denoise
from ddpm_redistill.training.draws import Draws, micro_batches
from ddpm_redistill.training.loop import make_accelerator, train
from ddpm_redistill.training.run_folder import RunFolder

IMAGES = torch.randint(256, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TASK = Denoise(scheduler=DDPMScheduler(num_train_timesteps=100))


class Affine(nn.Module):
    """A loss module: x -> w x + b, with a buffer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.shift = nn.ParameterDict({"b": nn.Parameter(torch.tensor(0.25))})
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.scale + self.shift["b"]


def tiny_network() -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4, 4), norm_num_groups=2,
        **blocks,
    )  # fmt: skip


def objective(network, batch, affine=None):
    prediction = network(batch["images"] + batch["noise"], batch["timesteps"]).sample
    prediction = prediction if affine is None else affine(prediction)
    return {"task": (prediction - batch["noise"]).square().mean()}


def run_loop(folder: Path, *, loss_modules=None, resume=False, objective=objective, network=None, **changes):
    """Train a tiny network -> it, as the loop leaves it."""
    network = network or tiny_network()
    config = TrainingConfig(**{**TRAIN, "steps": 6, **changes})
    draws = Draws(IMAGES, TASK, seed=0, batch_size=config.batch_size)
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    accelerator = make_accelerator(config, run)
    train(
        network, lambda _: objective, {"task": 1.0}, draws, config, run, accelerator,
        resume=resume, loss_modules=loss_modules,
    )  # fmt: skip
    return network


def test_modules_of_the_loss_are_trained_and_saved_under_a_prefix(tmp_path):
    affine = Affine()
    network = run_loop(tmp_path / "run", loss_modules=affine)
    assert affine.scale != 0.5
    assert affine.shift["b"] != 0.25
    assert affine.calls == 6
    saved = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    own = set(network.state_dict())
    assert set(saved.model) == own | {"loss.scale", "loss.shift.b", "loss.calls"}
    assert (saved.model["loss.scale"], saved.model["loss.calls"]) == (affine.scale, 6)
    assert set(saved.ema) == own
    trained = {name for name, _ in network.named_parameters()} | {"loss.scale", "loss.shift.b"}
    kinds = ("exp_avg", "exp_avg_sq", "step")
    assert set(saved.optimizer) == {f"{kind}/{name}" for kind in kinds for name in trained}


def test_a_trained_network_has_memory_of_its_own(tmp_path):
    for parameter in run_loop(tmp_path / "run", steps=1).parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.grad is None


def test_gradients_of_the_losss_modules_are_clipped_with_the_networks(tmp_path):
    network, affine = tiny_network(), Affine()
    draws = Draws(IMAGES, TASK, seed=0, batch_size=4)
    whole = {"first_step": 0, "last_step": 1, "rank": 0, "processes": 1, "accumulation": 1, "num_workers": 0}
    batch = next(micro_batches(draws, **whole, device=torch.device("cpu")))
    objective(network.train(), batch, affine)["task"].backward()
    gradients = [p.grad.flatten() for module in (network, affine) for p in module.parameters()]
    run_loop(tmp_path / "run", loss_modules=Affine(), steps=1)
    assert metrics(tmp_path / "run")[0]["grad_norm"] == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-5)


def test_modules_of_the_loss_are_resumed_bit_for_bit(tmp_path, monkeypatch):
    run_loop(tmp_path / "one", loss_modules=Affine())
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            run_loop(tmp_path / "killed", loss_modules=Affine())
    resumed = Affine()
    run_loop(tmp_path / "killed", loss_modules=resumed, resume=True)
    assert_same_checkpoints(tmp_path / "one", tmp_path / "killed")
    assert resumed.calls == 6


def test_a_checkpoint_without_the_modules_of_the_loss_is_refused(tmp_path):
    run_loop(tmp_path / "without")
    with pytest.raises(UserError, match="is not of this network"):
        run_loop(tmp_path / "without", loss_modules=Affine(), resume=True)
    run_loop(tmp_path / "with", loss_modules=Affine())
    with pytest.raises(UserError, match="is not of this network"):
        run_loop(tmp_path / "with", resume=True)
