"""The objective: its terms by name, a teacher that is run no further than they need, regressors that train along."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import SIZE, UNET_WEIGHTS, Killed, assert_same_run, distill_config, kill_at, metrics

from ddpm_redistill.config import FEATURE_TERMS, LOSS_TERMS, LossConfig, StudentConfig
from ddpm_redistill.core.feature_losses import feature_mse
from ddpm_redistill.core.taps import Tap, reading
from ddpm_redistill.errors import UserError
from ddpm_redistill.pipelines.modeling_red_unet import RedUNet2DModel
from ddpm_redistill.sources.teacher import Teacher, load_teacher
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.students.plan import StudentPlan, plan_student
from ddpm_redistill.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_redistill.training.comparison import alignment, check_terms, comparing, make_regressors
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.objective import distillation_objective, objective_of_steps

OFF = {**dict.fromkeys(LOSS_TERMS, 0.0), "red_distance": "mse", "weighting": "none", "gamma": 5.0, "clip_sample": False}
OFF["feature_share"] = 1.0


def loss_of(**weights: float) -> LossConfig:
    return LossConfig(**{**OFF, **weights})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def networks(inputs) -> tuple[Teacher, StudentPlan, RedUNet2DModel]:
    teacher = load_teacher(inputs["teacher"])
    plan = plan_student(dict(teacher.unet.config), StudentConfig(head_start="teacher"))
    return teacher, plan, derive_student(teacher.unet, plan)


def batch_of(count: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, count, 1, SIZE, SIZE, generator=generator)
    return {"images": images, "noise": noise, "timesteps": torch.tensor([5, 400, 900])}


def parts_and_gradients(networks, loss: LossConfig, names: tuple[str, ...]):
    """The loss parts of a batch, and the student's gradients of the sum of the named ones."""
    teacher, plan, student = networks
    student.zero_grad(set_to_none=True)
    aligned = alignment(dict(teacher.unet.config), plan)
    regressors = make_regressors(loss, aligned, seed=0)
    with comparing(teacher.unet, student, aligned) as compared:
        objective = distillation_objective(teacher, plan, loss, compared, torch.device("cpu"))
        parts = objective(student, batch_of(), *filter(None, [regressors]))
    sum(parts[name] for name in names).backward()
    return parts, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


# --- what is run


@pytest.mark.parametrize("name", FEATURE_TERMS)
def test_a_stopped_teacher_gives_the_loss_of_a_full_one(networks, name) -> None:
    """Bit for bit, its gradients too."""
    ran: list[int] = []
    handle = networks[0].unet.conv_out.register_forward_hook(lambda *args: ran.append(1))
    stopped, gradients = parts_and_gradients(networks, loss_of(**{name: 1.0}), (name,))
    assert ran == []
    full, full_gradients = parts_and_gradients(networks, loss_of(**{name: 1.0}, output=1.0), (name,))
    assert ran == [1]
    handle.remove()
    assert stopped.keys() == {"task", name}
    assert full.keys() == {"task", "output", name}
    assert torch.equal(stopped[name], full[name])
    assert gradients.keys() == full_gradients.keys()
    assert all(torch.equal(gradients[key], full_gradients[key]) for key in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0


def test_hooks_are_gone_from_both_networks(networks) -> None:
    parts_and_gradients(networks, loss_of(**dict.fromkeys(LOSS_TERMS, 1.0)), LOSS_TERMS)
    parts_and_gradients(networks, loss_of(red=1.0), ("red",))
    for network in (networks[0].unet, networks[2]):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_gradients_reach_the_student_and_never_the_teacher(networks) -> None:
    teacher = networks[0].unet
    teacher.requires_grad_(True)  # so that it is the objective that keeps them away
    for name in ("output", *FEATURE_TERMS):
        _, gradients = parts_and_gradients(networks, loss_of(**{name: 1.0}), (name,))
        assert any((gradient != 0).any() for gradient in gradients.values()), name
        assert all(parameter.grad is None for parameter in teacher.parameters()), name
    teacher.requires_grad_(False)


# --- what is compared


@pytest.mark.parametrize("predicts", ["v_prediction", "sample"])
@pytest.mark.parametrize("clip", [True, False])
def test_the_last_timestep_of_a_zero_terminal_snr(networks, predicts, clip) -> None:
    """Nothing is left of the image there: epsilon is the noisy image, whatever the networks say; no error is NaN."""
    teacher, plan, student = networks
    config = {**teacher.scheduler.config, "rescale_betas_zero_snr": True, "prediction_type": predicts}
    other = replace(teacher, scheduler=type(teacher.scheduler).from_config(config))
    assert other.scheduler.alphas_cumprod[-1] == 0
    loss = LossConfig(**{**OFF, "task": 1.0, "output": 1.0, "clip_sample": clip, "weighting": "snr_plus_one"})
    batch = {**batch_of(), "timesteps": torch.tensor([999, 999, 999])}
    student.zero_grad(set_to_none=True)
    with comparing(teacher.unet, student, ()) as compared:
        parts = distillation_objective(other, plan, loss, compared, torch.device("cpu"))(student, batch)
    sum(parts.values()).backward()
    assert [float(part.detach()) for part in parts.values()] == [0, 0]
    assert all(value.grad is None or value.grad.isfinite().all() for value in student.parameters())


def test_the_clip_of_the_teachers_scheduler_is_the_one_that_counts(networks) -> None:
    """Black images and a network that puts out blacker than black: no error if the teacher's scheduler clips."""
    teacher, plan, student = networks
    batch = {**batch_of(), "images": torch.full((3, 1, SIZE, SIZE), -1.0)}

    def parts_of(clip_sample: bool, clips: bool, value: float) -> dict[str, torch.Tensor]:
        config = {**teacher.scheduler.config, "clip_sample": clips}
        other = replace(teacher, scheduler=type(teacher.scheduler).from_config(config))
        loss = LossConfig(**{**OFF, "task": 1.0, "output": 1.0, "clip_sample": clip_sample})
        with comparing(teacher.unet, student, ()) as compared:
            objective = distillation_objective(other, plan, loss, compared, torch.device("cpu"))
            return objective(
                lambda noisy, timesteps, labels: SimpleNamespace(sample=torch.full_like(noisy, value)), batch
            )

    assert plan.options.prediction_type == "sample"
    assert parts_of(True, True, -3.0)["task"] == 0
    assert parts_of(True, True, -0.9)["task"] > 0
    for clip_sample, clips in ((True, False), (False, True), (False, False)):
        assert parts_of(clip_sample, clips, -3.0)["task"] > 0
    assert 0 < parts_of(True, True, -3.0)["output"] < parts_of(False, True, -3.0)["output"]


@pytest.mark.parametrize("placement", ["full", "outer", "none"])
def test_terms_are_means_over_the_places_of_all_red_blocks(inputs, placement) -> None:
    """Where a block is missing, of what its layer takes in or puts out. Maps are read by two forwards here; ``feature``
    counts only where channels agree, ``fitnet`` after its regressors."""
    teacher = load_teacher(inputs["teacher"])
    options = StudentConfig(head_start="teacher", red_placement=placement)
    plan, full = (
        plan_student(dict(teacher.unet.config), chosen) for chosen in (options, replace(options, red_placement="full"))
    )
    student = derive_student(teacher.unet, plan)
    networks, there = (teacher, plan, student), {block.name for block in plan.blocks}
    assert len(there) == {"full": len(full.blocks), "outer": 2, "none": 0}[placement]
    found, _ = parts_and_gradients(networks, loss_of(red=1.0, feature=1.0, fitnet=1.0), FEATURE_TERMS[:3])
    batch = batch_of()
    noisy = teacher.scheduler.add_noise(batch["images"], batch["noise"], batch["timesteps"])
    regressors = make_regressors(loss_of(fitnet=1.0), full.blocks, seed=0)
    sums: dict[str, list[torch.Tensor]] = {"red": [], "feature": [], "fitnet": []}
    with torch.no_grad():
        for i, block in enumerate(full.blocks):
            layer, side = block.name.rsplit(".", 1)
            bare = Tap(layer, "input" if side == "red_in" else "output")
            mine = Tap(block.name, "output") if block.name in there else bare
            its = Tap(block.teacher_layer, block.teacher_side)  # type: ignore[arg-type]
            with reading(student, [mine]) as own, reading(teacher.unet, [its]) as wanted:
                seen = own.run(student, noisy, batch["timesteps"])[1]
                pair = seen[mine], wanted.run(teacher.unet, noisy, batch["timesteps"])[1][its]
            assert (pair[0].shape[1], pair[1].shape[1]) == (block.channels, block.teacher_channels)
            sums["red"].append((pair[0].mean(1) - pair[1].mean(1)).square().mean())
            sums["fitnet"].append((regressors.taps[i](pair[0]) - pair[1]).square().mean())
            if block.channels == block.teacher_channels:
                sums["feature"].append(feature_mse(*pair))
    assert 0 < len(sums["feature"]) < len(sums["red"]) == len(full.blocks)
    for name, values in sums.items():
        torch.testing.assert_close(found[name].detach(), torch.stack(values).mean())


@pytest.mark.parametrize(("share", "steps", "aligned_steps"), [(1.0, 3, 3), (0.5, 6, 3), (0.25, 9, 2), (0.25, 1, 1)])
def test_terms_on_maps_count_in_their_share_of_the_steps(networks, share, steps, aligned_steps) -> None:
    """After it the teacher does not run; with the output loss it runs for that alone."""
    teacher, plan, student = networks
    aligned = alignment(dict(teacher.unet.config), plan)
    ran: list[int] = []
    handle = teacher.unet.conv_in.register_forward_hook(lambda *args: ran.append(1))
    for output, others in ((0.0, {"task"}), (1.0, {"task", "output"})):
        loss = loss_of(task=1.0, red=2.0, output=output, feature_share=share)
        with comparing(teacher.unet, student, aligned) as compared:
            objective_at = objective_of_steps(teacher, plan, loss, compared, steps, torch.device("cpu"))
            for step in range(steps):
                ran.clear()
                with torch.no_grad():
                    parts = objective_at(step)(student, batch_of())
                assert parts.keys() == (others | {"red"} if step < aligned_steps else others)
                assert len(ran) == (step < aligned_steps or output > 0)
    handle.remove()


def test_a_run_past_its_share_resumes_to_the_same_bytes(inputs, tmp_path, monkeypatch) -> None:
    """Killed before the share ends and after it."""
    loss = {"red": 3.0, "fitnet": 1.0, "feature_share": 0.5}
    one = distill_config(inputs, tmp_path / "one", loss=loss, steps=6)
    distill(one)
    rows = metrics(tmp_path / "one")
    assert ["red" in row for row in rows] == [True] * 3 + [False] * 3
    assert all(
        row["loss"] == pytest.approx(row["task"] + 3 * row.get("red", 0) + row.get("fitnet", 0), rel=1e-5)
        for row in rows
    )
    for step in (3, 5):
        killed = distill_config(inputs, tmp_path / f"killed{step}", loss=loss, steps=6)
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                distill(killed)
        distill(killed, resume=True)
        assert_same_run(tmp_path / "one", tmp_path / f"killed{step}")


# --- what is refused


def test_feature_without_a_pair_of_equal_channels_is_refused(networks) -> None:
    aligned = alignment(dict(networks[0].unet.config), networks[1])
    some = [block for block in aligned if block.channels != block.teacher_channels]
    check_terms(loss_of(feature=1.0), aligned, 4)
    with pytest.raises(UserError, match=r"loss\.feature is not 0 but no map .* use loss\.fitnet"):
        check_terms(loss_of(feature=1.0), some, 4)
    check_terms(loss_of(fitnet=1.0), some, 4)


@pytest.mark.parametrize("dry_run", [False, True])
def test_similarity_of_a_single_image_is_refused(inputs, tmp_path, dry_run) -> None:
    config = distill_config(inputs, tmp_path / "run", loss={"similarity": 1.0}, gradient_accumulation=4)
    with pytest.raises(UserError, match=r"loss\.similarity compares .* raise training\.batch_size"):
        distill(config, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


# --- regressors


def test_regressors_come_from_the_seed_alone(networks) -> None:
    loss, aligned = loss_of(fitnet=1.0), alignment(dict(networks[0].unet.config), networks[1])
    torch.manual_seed(1)
    first = make_regressors(loss, aligned, seed=7).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # the global random state is as it was
    again, other = (make_regressors(loss, aligned, seed=seed).state_dict() for seed in (7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert make_regressors(loss_of(red=1.0), aligned, seed=7) is None


def test_a_resumed_run_with_fitnet_is_the_run_in_one_go(inputs, tmp_path, monkeypatch) -> None:
    runs = tmp_path / "one", tmp_path / "killed"
    configs = [distill_config(inputs, run, loss={"fitnet": 2.0, "feature_share": 1.0}, steps=6) for run in runs]
    distill(configs[0])
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            distill(configs[1])
    torch.manual_seed(99)
    distill(configs[1], resume=True)
    assert_same_run(*runs)
    saved = list_checkpoints(runs[0] / "checkpoints")
    first, last = load_checkpoint(saved[0]).model, load_checkpoint(saved[-1]).model
    trained = [name for name in last if name.startswith("loss.")]
    assert trained
    assert not any(torch.equal(first[name], last[name]) for name in trained)
    assert not any(name.startswith("loss.") for name in load_file(runs[0] / "student" / UNET_WEIGHTS))


# --- whole runs


@pytest.mark.parametrize("name", FEATURE_TERMS)
def test_a_run_of_each_term(inputs, tmp_path, name) -> None:
    run = tmp_path / "run"
    loss = {"task": 1.0, "red": 0.0, name: 3.0, "feature_share": 1.0}
    assert distill(distill_config(inputs, run, loss=loss, steps=3)) == run / "student"
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row.keys() == {"step", "loss", "task", name, "grad_norm", "learning_rate"}
        assert row["loss"] == pytest.approx(row["task"] + 3 * row[name], rel=1e-5)
        assert row[name] > 0
    assert Path(run / "student" / UNET_WEIGHTS).exists()


def test_a_run_of_all_terms_together(inputs, tmp_path) -> None:
    weights = {name: 0.5 + i for i, name in enumerate(LOSS_TERMS)}
    distill(distill_config(inputs, tmp_path / "run", loss={**weights, "feature_share": 1.0}, steps=2))
    for row in metrics(tmp_path / "run"):
        assert row["loss"] == pytest.approx(sum(weight * row[name] for name, weight in weights.items()), rel=1e-5)
