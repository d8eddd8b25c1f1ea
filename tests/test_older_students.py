"""Students that were saved before plans had edits still open, to the same images."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from student_helpers import old_plan

from ddpm_redistill import StudentPlan, load_pipeline, plan_student
from ddpm_redistill.cli import main
from ddpm_redistill.plan_facts import plan_facts
from ddpm_redistill.students.footprint import network_of

FOLDER = Path(__file__).parent / "students" / "before_edits"
"""An x4 student with RED blocks everywhere and a widened level, written by commit 31ce2b6, and two images that its
network made there in five DDIM steps."""


def test_the_same_images() -> None:
    pipeline = load_pipeline(str(FOLDER))
    kept = load_file(FOLDER / "sampled.safetensors")
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(5)
    images = kept["noise"]
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            images = scheduler.step(pipeline.unet(images, timestep).sample, timestep, images).prev_sample
    torch.testing.assert_close(images, kept["images"], rtol=0, atol=1e-5)


def test_its_plan_says_what_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((FOLDER / "unet" / "config.json").read_text())
    old = config["student_plan"]
    plan = StudentPlan.from_dict(old)
    assert old_plan(plan) == old
    assert StudentPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    # what pages say of both is the same, where they say it
    facts, before = plan_facts(plan.to_dict()), plan_facts(old)
    for name in ("reduction", "teacher_strides", "student_strides", "red_placement", "prediction_type", "widen"):
        assert facts[name] == before[name]
    assert [block["name"] for block in facts["blocks"]] == [block["name"] for block in before["blocks"]]
    main(["memory", str(FOLDER), "--json"])
    assert json.loads(capsys.readouterr().out)["memory"]["tensor_peak"] > 0
    with torch.device("meta"):
        assert (
            network_of({**config, "student_plan": plan.to_dict()}).state_dict().keys()
            == network_of(config).state_dict().keys()
        )


def test_planned_today_it_is_the_same_plan() -> None:
    config = json.loads((FOLDER / "unet" / "config.json").read_text())
    plan = StudentPlan.from_dict(config["student_plan"])
    base = {key: value for key, value in config.items() if key != "student_plan" and not key.startswith("_")}
    for key in ("down_block_types", "up_block_types"):
        base[key] = [name.split(".")[-1] for name in base[key]]
    assert plan_student(base, plan.options) == plan
