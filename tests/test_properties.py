"""Any UNet2DModel of a described space is planned, built, run and saved and loaded equal, or refused by name."""

import json
import tempfile
from dataclasses import asdict
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDPMScheduler, UNet2DModel
from hypothesis import Phase, event, find, given, settings
from hypothesis import strategies as st
from property_helpers import assert_one_line, examples

from ddpm_redistill import RedDDPMPipeline, StudentPlan, UserError, derive_student, load_pipeline, plan_student
from ddpm_redistill.config import ClassificationConfig, DistillConfig, LossConfig, StudentConfig, TrainingConfig
from ddpm_redistill.recipes import RECIPES, resolve
from ddpm_redistill.training.run_folder import settings_text

DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a UNet2DModel: 2 to 4 levels, channels in multiples of the groups, layers, blocks, samplers, sizes;
    some that no network has (a size that does not divide)."""
    levels = draw(st.integers(2, 4))
    groups = draw(st.sampled_from([1, 2, 4]))
    channels = draw(st.integers(1, 3))
    return {
        "sample_size": draw(st.sampled_from([8, 12, 16, 24, 32])),
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": draw(st.integers(1, 2)),
        "block_out_channels": [4 * draw(st.integers(1, 3)) for _ in range(levels)],
        "down_block_types": [draw(st.sampled_from(DOWN)) for _ in range(levels)],
        "up_block_types": [draw(st.sampled_from(UP)) for _ in range(levels)],
        "mid_block_type": draw(st.sampled_from(["UNetMidBlock2D", None])),
        "add_attention": draw(st.booleans()),
        "attention_head_dim": draw(st.sampled_from([None, 1, 2, 4])),
        "norm_num_groups": groups,
        "downsample_padding": draw(st.integers(0, 1)),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "act_fn": draw(st.sampled_from(["silu", "gelu", "relu"])),
        "center_input_sample": draw(st.booleans()),
        "flip_sin_to_cos": draw(st.booleans()),
    }


@st.composite
def student_options(draw: st.DrawFn) -> StudentConfig:
    return StudentConfig(
        reduction=draw(st.sampled_from([2, 2, 4, 8])),  # type: ignore[arg-type]
        red_placement=draw(st.sampled_from(["full", "outer", "none"])),  # type: ignore[arg-type]
        red_norm=draw(st.sampled_from(["batch", "group"])),  # type: ignore[arg-type]
        red_start=draw(st.sampled_from(["paper", "identity"])),  # type: ignore[arg-type]
        start=draw(st.sampled_from(["teacher", "random"])),  # type: ignore[arg-type]
        head_start=draw(st.sampled_from(["teacher", "zero"])),  # type: ignore[arg-type]
        prediction_type=draw(st.sampled_from(["epsilon", "v_prediction", "sample"])),  # type: ignore[arg-type]
        widen=draw(st.none() | st.lists(st.integers(1, 2), min_size=2, max_size=4)),
    )


@examples(14)
@given(config=networks(), options=student_options(), seed=st.integers(0, 10))
def test_planned_built_run_and_saved_or_refused(config: dict[str, Any], options: StudentConfig, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            plan = plan_student(config, options)
            teacher = UNet2DModel(**config).eval()
            student = derive_student(teacher, plan, seed=seed)
        except UserError as error:
            assert_one_line(error)
            event("refused")
            return
        event("made")
        assert StudentPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
        shape = (2, config["in_channels"], config["sample_size"], config["sample_size"])
        image, timesteps = torch.randn(shape), torch.tensor([0, 999])
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        made = student(image, timesteps).sample
        assert made.shape == teacher(image, timesteps).sample.shape == shape
        assert made.isfinite().all()
        RedDDPMPipeline(student, DDPMScheduler()).save_pretrained(folder)
        loaded = load_pipeline(folder).unet
        assert StudentPlan.from_dict(loaded.config.student_plan) == plan
        for name, value in student.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        assert torch.equal(loaded(image, timesteps).sample, made)


def test_the_space_has_both_kinds() -> None:
    """A network that is made and one that is refused, so that the property above is about something."""

    def made(drawn: tuple[dict[str, Any], StudentConfig]) -> bool:
        try:
            plan_student(*drawn)
        except UserError:
            return False
        return True

    both = st.tuples(networks(), student_options())
    first = settings(max_examples=60, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    find(both, made, settings=first)
    find(both, lambda drawn: not made(drawn), settings=first)


@st.composite
def run_configs(draw: st.DrawFn) -> DistillConfig:
    weight = st.none() | st.floats(0, 1e6)
    return DistillConfig(
        teacher=draw(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)),
        data=draw(st.sampled_from(["builtin:digits", "null", "1e3", "yes", "a: b", "# c", "~", "{x}", " ", "é\u2028"])),
        on_bad_image=draw(st.sampled_from(["error", "skip"])),  # type: ignore[arg-type]
        image_size=draw(st.none() | st.integers(1, 2**20)),
        horizontal_flip=draw(st.booleans()),
        recipe=draw(st.sampled_from([name for name in RECIPES if name != "moonshine"])),  # type: ignore[arg-type]
        student=draw(student_options().filter(lambda options: options.red_placement != "none")),
        loss=LossConfig(task=1.0, output=draw(weight), red=draw(weight), gamma=draw(st.none() | st.floats(1e-6, 1e6))),
        training=TrainingConfig(
            steps=draw(st.integers(1, 2**40)),
            learning_rate=draw(st.floats(1e-12, 1e6)),
            ema_decay=draw(st.floats(0, 1, exclude_max=True)),
        ),
        seed=draw(st.integers(-(2**63), 2**63)),
    )


def rebuilt(settings: dict[str, Any]) -> DistillConfig:
    groups = {"student": StudentConfig, "loss": LossConfig, "training": TrainingConfig}
    groups["classification"] = ClassificationConfig
    return DistillConfig(**{**settings, **{name: kind(**settings[name]) for name, kind in groups.items()}})


@examples(40)
@given(config=run_configs())
def test_a_config_is_the_same_after_yaml_and_json(config: DistillConfig) -> None:
    assert rebuilt(yaml.safe_load(settings_text(config))) == config
    assert rebuilt(json.loads(json.dumps(asdict(config)))) == config
    resolved = resolve(config)
    assert resolve(resolved) == resolved
    assert rebuilt(yaml.safe_load(settings_text(resolved))) == resolved


@pytest.mark.parametrize("missing", ["options", "teacher_strides", "reduction", "family"])
def test_a_plan_without_a_part_is_named(missing: str, tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config).to_dict()
    del plan[missing]
    with pytest.raises(UserError, match=missing):
        StudentPlan.from_dict(plan)


@pytest.mark.parametrize(
    ("name", "value"),
    [("reduction", None), ("reduction", 3), ("family", "x"), ("student_strides", [4, 2, 1, 1]), ("sample_size", 0)],
)
def test_a_plan_of_another_value_is_named(name: str, value: Any, tiny_config: dict[str, Any]) -> None:
    words = "reduction is 2, of strides" if name == "student_strides" else f"{name} is "
    with pytest.raises(UserError, match=f"not a student plan: {words}"):
        StudentPlan.from_dict({**plan_student(tiny_config).to_dict(), name: value})


@pytest.mark.parametrize(("name", "value"), [("reduction", 3), ("red_norm", "x"), ("start", []), ("x", 1)])
def test_an_option_of_another_value_is_named(name: str, value: Any, tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config).to_dict()
    with pytest.raises(UserError, match=f"not a student plan: .*{name}"):
        StudentPlan.from_dict({**plan, "options": {**plan["options"], name: value}})


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("red", {"norm": "x"}, "in an edit of kind red norm is 'x'"),
        ("red", {"channels": 2.5}, "channels is 2.5"),
        ("red", {"more": 1}, "has an unknown more"),
        ("stem", {"stride": -1}, "stride is -1"),
        ("stem", {"layers": []}, "layers is"),
        ("stem", {"edit": "cut"}, "is no edit: its kind must be one of"),
        ("stride", {"layers": "down_blocks"}, "layers is 'down_blocks'"),
    ],
)
def test_an_edit_of_another_value_is_named(kind: str, change: Any, words: str, tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config).to_dict()
    edits = [{**edit, **change} if edit["edit"] == kind else edit for edit in plan["edits"]]
    with pytest.raises(UserError, match=f"not a student plan: .*{words}"):
        StudentPlan.from_dict({**plan, "edits": edits})
