"""Settings: recipes fill what is left open, what is given beats them, the paper's recipes stay as published."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from training_helpers import UNET

from ddpm_redistill.config import LOSS_TERMS, DistillConfig, LossConfig, StudentConfig, TeachConfig, TrainingConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.files import read_metrics, write_aside
from ddpm_redistill.pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ddpm_redistill.recipes import RECIPES, resolve
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.students.plan import plan_student
from ddpm_redistill.training.run_folder import RunFolder, flatten, settings_text
from ddpm_redistill.training.teach_ddpm import build_teacher

NO_TERM = dict.fromkeys(
    [
        "task",
        "output",
        "red",
        "feature",
        "fitnet",
        "attention_norm",
        "attention_mean_square",
        "similarity",
    ],
    0.0,
)
OF_ITS_OWN = dict.fromkeys(("architecture", "arguments", "align_after", "cheap", "cheap_norm"))
"""Of students that are not made of their teacher's layers, or have cheap convolutions."""
PAPER_STUDENT = {
    "reduction": 2,
    "red_placement": "full",
    "red_norm": "batch",
    "red_start": "paper",
    "start": "random",
    "head_start": "teacher",
    "prediction_type": "epsilon",
    "widen": None,
    **OF_ITS_OWN,
}


PAPER_LOSS = {**NO_TERM, "task": 1.0, "red": 50.0, "weighting": "none", "gamma": 5.0, "clip_sample": False}
PAPER_LOSS |= {"feature_places": "red", "feature_share": 1.0}


OF_RED = [recipe for recipe in RECIPES if recipe != "moonshine"]  # which asks for student.cheap: test_cheap_runs.py
LEFT = ("guidance", "temperature")


def settled(config: DistillConfig) -> tuple[dict, dict]:
    """Of student and loss, without loss.guidance and temperature, which no recipe sets."""
    found = resolve(config)
    return vars(found.student), {name: value for name, value in vars(found.loss).items() if name not in LEFT}


def test_redistill_is_the_papers():
    assert settled(DistillConfig(recipe="redistill")) == (
        PAPER_STUDENT,
        {**PAPER_LOSS, "red_distance": "mse"},
    )


def test_redistill_cosine_is_the_papers():
    assert settled(DistillConfig(recipe="redistill_cosine")) == (
        PAPER_STUDENT,
        {**PAPER_LOSS, "red_distance": "cosine"},
    )


def test_default_recipe_starts_from_the_teacher_with_red_blocks():
    student, loss = settled(DistillConfig())
    assert (student["start"], student["red_placement"]) == ("teacher", "outer")
    same = {"red": 10.0, "red_distance": "mse", "weighting": "snr_plus_one", "gamma": 2.0, "clip_sample": True}
    same |= {"feature_places": "red"}
    assert loss == {**NO_TERM, **same, "task": 0.5, "output": 0.5, "feature_share": 1.0}
    saturated = resolve(DistillConfig(), "saturated")
    assert saturated == resolve(DistillConfig(recipe="saturated"))
    assert settled(saturated)[0] == student
    assert settled(saturated)[1] == {**NO_TERM, **same, "task": 1.0, "feature_share": 0.25}


@pytest.mark.parametrize("recipe", OF_RED)
def test_every_recipe_leaves_nothing_open(recipe):
    student, loss = settled(DistillConfig(recipe=recipe))
    assert [name for name, value in {**student, **loss}.items() if value is None] == [
        "widen",
        *OF_ITS_OWN,
    ]  # 1 at every level


@pytest.mark.parametrize("recipe", OF_RED)
def test_what_is_given_beats_the_recipe(recipe):
    given = DistillConfig(
        recipe=recipe,
        student=StudentConfig(reduction=4, red_placement="outer", red_norm="group", prediction_type="sample"),
        loss=LossConfig(task=0.0, output=0.25, red=2.0),
    )
    student, loss = settled(given)
    recipe_says = RECIPES[recipe]
    assert student == {
        **recipe_says["student"],
        **{"reduction": 4, "red_placement": "outer", "red_norm": "group", "prediction_type": "sample"},
        "widen": None,
        **OF_ITS_OWN,
    }
    assert loss == {**recipe_says["loss"], "feature_places": "red", "task": 0.0, "output": 0.25, "red": 2.0}


@pytest.mark.parametrize("name", LOSS_TERMS)
def test_any_one_term_is_a_loss(name):
    only = {**dict.fromkeys(LOSS_TERMS, 0.0), name: 0.5}
    _, loss = settled(DistillConfig(loss=LossConfig(**only, feature_share=1.0)))
    assert {name: loss[name] for name in LOSS_TERMS} == only


def test_resolve_keeps_the_rest_and_changes_nothing_the_second_time():
    given = DistillConfig(teacher="t", data="d", image_size=8, training=TrainingConfig(steps=3), seed=7)
    once = resolve(given)
    assert replace(once, recipe="default", student=given.student, loss=given.loss) == given
    assert resolve(once) == once


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        DistillConfig().seed = 1  # type: ignore[misc]


BAD_TRAINING = [
    *[(name, 0) for name in ("steps", "batch_size", "gradient_accumulation", "log_every", "checkpoint_every")],
    *[(name, -1) for name in ("warmup_steps", "num_workers", "sample_every", "keep_checkpoints")],
    *[(name, bad) for name in ("learning_rate", "milestone_factor") for bad in (0.0, -1.0, float("inf"), float("nan"))],
    *[(name, bad) for name in ("max_grad_norm", "weight_decay") for bad in (-1.0, float("inf"), float("nan"))],
    *[("ema_decay", bad) for bad in (-0.1, 1.0, float("nan"))],
]


@pytest.mark.parametrize(("name", "value"), BAD_TRAINING)
def test_bad_training_settings_are_named(name, value):
    with pytest.raises(UserError, match=rf"training\.{name} must be .*, not"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("milestones", [[0.0], [1.0], [0.5, 0.5], [0.75, 0.5], [float("nan")]])
def test_milestones_are_rising_shares(milestones):
    with pytest.raises(UserError, match=r"training\.milestones must rise between 0 and 1"):
        TrainingConfig(milestones=milestones)


def test_the_optimizer_says_how_gradients_are_clipped():
    assert TrainingConfig().clip_norm == 0.05
    assert TrainingConfig(optimizer="sgd").clip_norm == 0
    assert TrainingConfig(optimizer="sgd", max_grad_norm=2.0).clip_norm == 2
    assert TrainingConfig(max_grad_norm=0.0).clip_norm == 0


@pytest.mark.parametrize("name", ["warmup_steps", "num_workers", "sample_every", "keep_checkpoints"])
def test_zero_is_allowed_where_it_means_none(name):
    assert getattr(TrainingConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize("size", [0, -16])
def test_image_size_is_positive(size):
    with pytest.raises(UserError, match=f"image_size must be at least 1, not {size}"):
        DistillConfig(image_size=size)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DistillConfig(recipe="nonsense"),
            "unknown recipe 'nonsense': expected one of default, natural, saturated, redistill",
        ),  # type: ignore[arg-type]
        (DistillConfig(loss=LossConfig(task=-1.0)), "loss.task must be zero or positive, not -1.0"),
        (DistillConfig(loss=LossConfig(output=float("inf"))), "loss.output must be zero or positive"),
        (DistillConfig(loss=LossConfig(red=float("nan"))), "loss.red must be zero or positive, not nan"),
        (DistillConfig(loss=LossConfig(gamma=-5.0)), "loss.gamma must be positive"),
        (DistillConfig(loss=LossConfig(task=0.0, output=0.0, red=0.0)), "nothing would be learned"),
        *[
            (
                DistillConfig(loss=LossConfig(feature_share=share)),
                f"feature_share must be above 0 and at most 1, not {share}",
            )
            for share in (0.0, -0.1, 1.1, float("nan"))
        ],
        (
            DistillConfig(recipe="saturated", loss=LossConfig(task=0.0)),
            "nothing is left after loss.feature_share, set it to 1",
        ),
        *[
            (DistillConfig(loss=LossConfig(**{name: -1.0})), f"loss.{name} must be zero or positive, not -1.0")
            for name in LOSS_TERMS
        ],
    ],
)
def test_configs_that_make_no_sense_are_refused(config, message):
    with pytest.raises(UserError) as refused:
        resolve(config)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": {"nonsense": 1}}, "unet.nonsense is not a setting here"),
        ({"unet": {"sample_size": 8}}, "unet.sample_size comes from image_size"),
        ({"unet": {**UNET, "norm_num_groups": 3}}, "diffusers refuses the unet"),
        ({"unet": {**UNET, "num_class_embeds": 3}}, "unet.num_class_embeds comes from class_conditional"),
        ({"unet": {**UNET, "class_embed_type": "timestep"}}, "unet.class_embed_type is not a setting here"),
        ({"image_size": 20}, "image_size 20 does not divide by 8"),
        ({"scheduler": {"nonsense": 1}}, "scheduler.nonsense is not a setting here"),
        ({"scheduler": {"beta_schedule": "x"}}, "diffusers refuses"),
        ({"scheduler": {"num_train_timesteps": 0}}, "num_train_timesteps must be at least 1"),
        ({"scheduler": {"prediction_type": "x"}}, "prediction_type must be one of epsilon"),
    ],
)
def test_teachers_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError) as refused:
        build_teacher(TeachConfig(**{"unet": UNET, "image_size": 16, **changes}))
    assert message in str(refused.value)


# --- a teacher that goes on from another


def like(teacher, **unet):
    own = {key: value for key, value in dict(teacher.config).items() if not key.startswith("_")}
    taken = ("sample_size", "in_channels", "out_channels")
    return {**{key: value for key, value in own.items() if key not in taken}, **unet}


def test_a_teacher_goes_on_from_another(tiny_teacher, teacher_folder):
    config = TeachConfig(unet=like(tiny_teacher), image_size=32, start=str(teacher_folder))  # at any size
    started, _ = build_teacher(config)
    assert started.config.sample_size == 32
    assert all(torch.equal(value, tiny_teacher.state_dict()[name]) for name, value in started.state_dict().items())
    assert all(parameter.requires_grad for parameter in started.parameters())
    fresh, _ = build_teacher(TeachConfig(unet=like(tiny_teacher)))
    assert not torch.equal(fresh.conv_in.weight, tiny_teacher.conv_in.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": {"act_fn": "relu"}}, "has act_fn silu, and this config relu"),
        ({"unet": {"block_out_channels": (8, 8, 8, 16)}}, "has block_out_channels [8, 8, 16, 16], and this config"),
        ({"channels": 3}, "has in_channels 1, and this config 3"),
        ({"scheduler": {"prediction_type": "v_prediction"}}, "has prediction_type epsilon, and this config v_pred"),
        ({"start": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_a_start_of_another_network_is_refused(tiny_teacher, teacher_folder, changes, message):
    unet = like(tiny_teacher, **changes.get("unet", {}))
    with pytest.raises(UserError) as refused:
        build_teacher(TeachConfig(**{"image_size": 16, "start": str(teacher_folder), **changes, "unet": unet}))
    assert message in str(refused.value)


def test_a_student_is_no_start_of_a_teacher(tiny_teacher, tmp_path):
    student = derive_student(tiny_teacher, plan_student(dict(tiny_teacher.config)))
    RedDDPMPipeline(student, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a student, give a UNet2DModel: distill goes on from students"):
        build_teacher(TeachConfig(unet=like(tiny_teacher), image_size=16, start=str(tmp_path)))


# --- the run folder keeps them


@pytest.mark.parametrize("config", [DistillConfig(seed=3), TeachConfig(unet={"act_fn": "silu", "norm_eps": 1e-6})])
def test_saved_config_reads_back_and_may_be_resumed(tmp_path, config):
    run = RunFolder(tmp_path / "run")
    run.start(config)
    assert yaml.safe_load(run.config.read_text()) == yaml.safe_load(settings_text(config))
    run.check_place(resume=True)
    run.check_config(config, resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        run.check_place(resume=False)


def test_a_resume_names_the_setting_that_changed(tmp_path):
    run = RunFolder(tmp_path)
    run.start(DistillConfig())
    changed = DistillConfig(training=TrainingConfig(learning_rate=5e-4))
    with pytest.raises(UserError, match=r"training\.learning_rate was 0\.001 and is now 0\.0005"):
        run.check_config(changed, resume=True)


def test_a_run_of_a_version_with_fewer_settings_may_be_resumed(tmp_path):
    run = RunFolder(tmp_path)
    run.start(DistillConfig())
    saved = yaml.safe_load(run.config.read_text())
    del saved["loss"]["similarity"], saved["student"]["widen"]
    run.config.write_text(yaml.safe_dump(saved))
    run.check_config(DistillConfig(), resume=True)
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        run.check_config(DistillConfig(seed=1), resume=True)


def test_an_argument_of_the_network_is_not_added_on_a_resume(tmp_path):
    RunFolder(tmp_path).start(TeachConfig(unet={"dropout": 0.1}))
    with pytest.raises(UserError, match=r"unet\.act_fn was None and is now relu"):
        RunFolder(tmp_path).check_config(TeachConfig(unet={"dropout": 0.1, "act_fn": "relu"}), resume=True)


def test_a_moved_run_may_be_resumed(tmp_path):
    RunFolder(tmp_path).start(DistillConfig(output_dir="elsewhere"))
    RunFolder(tmp_path).check_config(DistillConfig(output_dir=str(tmp_path)), resume=True)


def test_flatten_names_nested_settings():
    assert flatten({"a": {"b": 1, "c": {"d": (2, 3)}}, "e": None}) == {"a.b": 1, "a.c.d": [2, 3], "e": None}


# --- metrics.jsonl


def test_a_torn_last_row_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_rows_past_a_checkpoint_are_dropped(tmp_path):
    run = RunFolder(tmp_path)
    run.drop_metrics_after(0)  # there are none yet
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    run.drop_metrics_after(2)
    run.append_metrics({"step": 3})
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2, 3]


def test_write_aside_replaces_and_leaves_nothing(tmp_path):
    write_aside(tmp_path / "a.txt", "old")
    write_aside(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
