"""What each verb of the command line does: a function of its parsed arguments that joins the rooms of the house.

torch is imported when work starts, so that ``--help`` and a mistyped option answer at once.
"""

import json
import logging
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import Namespace

from .cli_text import memory_table, summary
from .config import DistillConfig, LossConfig, StudentConfig, TeachConfig, TrainingConfig
from .errors import UserError

log = logging.getLogger("ddpm_redistill")

DEMO_CONFIG = Path(__file__).parent / "builtin" / "demo.yaml"
DEMO_IMAGES = 500
DEMO_STEPS = 25


def run_plan(arguments: Namespace) -> None:
    from .sources.teacher import find_model
    from .students.footprint import planned_memory
    from .students.plan import plan_student

    model = find_model(arguments.teacher)
    if model.network_class != "UNet2DModel":
        raise UserError(f"{arguments.teacher} is a student already: give the teacher that it was made from")
    if arguments.image_size is not None and arguments.image_size < 1:
        raise UserError(f"image_size must be at least 1, not {arguments.image_size}")
    size = arguments.image_size or model.config.get("sample_size")
    options = StudentConfig(reduction=arguments.reduction, red_placement=arguments.red_placement)
    plan = plan_student({**model.config, "sample_size": size}, options)
    memory = {name: profile.to_dict() for name, profile in planned_memory(model.config, plan).items()}
    if arguments.json:
        print(json.dumps({"teacher": arguments.teacher, "plan": plan.to_dict(), "memory": memory}, indent=2))
    else:
        print(plan)
        print(memory_table(memory))


def run_memory(arguments: Namespace) -> None:
    import torch

    from .sources.teacher import find_model
    from .students.derive import build_student
    from .students.footprint import unet_memory
    from .students.plan import StudentPlan, build_on_meta

    if arguments.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {arguments.batch_size}")
    model = find_model(arguments.model)
    config = dict(model.config)
    if model.network_class == "RedUNet2DModel":
        with torch.device("meta"):
            unet: Any = build_student(config, StudentPlan.from_dict(config.get("student_plan") or {}))
    else:
        unet = build_on_meta(config)
    memory = {"model": unet_memory(unet, batch_size=arguments.batch_size).to_dict()}
    if arguments.json:
        result = {"model": arguments.model, "batch_size": arguments.batch_size, "memory": memory["model"]}
        print(json.dumps(result, indent=2))
    else:
        print(memory_table(memory))


def run_teach(arguments: Namespace) -> None:
    from .training.teach import teach

    quiet_libraries()
    config = TeachConfig(**as_settings(arguments, TeachConfig))
    teach(config, resume=arguments.resume, dry_run=arguments.dry_run)


def run_distill(arguments: Namespace) -> None:
    from .training.distill import distill

    quiet_libraries()
    config = DistillConfig(**as_settings(arguments, DistillConfig))
    distill(config, resume=arguments.resume, dry_run=arguments.dry_run)


def run_sample(arguments: Namespace) -> None:
    import torch
    from PIL import Image

    from .evaluation.evaluate import GRID_COLUMNS, GRID_IMAGES, open_for_sampling
    from .evaluation.pictures import image_grid
    from .evaluation.sampling import sample_batches

    quiet_libraries()
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder: give another --output")
    pipeline = open_for_sampling(arguments.model, arguments.scheduler)
    first: list[torch.Tensor] = []
    count = 0
    for batch in sample_batches(
        pipeline,
        num_images=arguments.num_images,
        num_inference_steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    ):
        output.mkdir(parents=True, exist_ok=True)
        first += list(batch[: max(0, GRID_IMAGES - count)])
        for image in batch:
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(pixels).save(output / f"{count:06d}.png")
            count += 1
    grid = output.resolve().with_name(output.resolve().name + "_grid.png")  # of "." too
    image_grid(torch.stack(first), GRID_COLUMNS).save(grid)
    log.info("%d images in %s, the first of them in %s", count, output, grid)


def run_evaluate(arguments: Namespace) -> None:
    from .evaluation.evaluate import evaluate

    quiet_libraries()
    folder = Path(arguments.model)
    in_run = (folder.parent / "config.yaml").is_file()
    report = evaluate(
        arguments.model,
        teacher=arguments.teacher,
        data=arguments.data,
        num_images=arguments.num_images,
        num_inference_steps=arguments.steps,
        scheduler=arguments.scheduler,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        inception_weights=arguments.inception_weights,
        output_dir=arguments.output_dir or (folder.parent if in_run else "runs/evaluate"),
    )
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(summary(report))


def run_demo(arguments: Namespace) -> None:
    from .evaluation.evaluate import evaluate
    from .training.distill import distill

    quiet_libraries()
    settings = yaml.safe_load(DEMO_CONFIG.read_text())
    groups = {"student": StudentConfig, "loss": LossConfig, "training": TrainingConfig}
    settings |= {name: kind(**settings[name]) for name, kind in groups.items()}
    config = DistillConfig(**settings, output_dir=arguments.output_dir, seed=arguments.seed)
    student = distill(config)
    report = evaluate(
        str(student),
        teacher=config.teacher,
        data=config.data,
        num_images=DEMO_IMAGES,
        num_inference_steps=DEMO_STEPS,
        seed=arguments.seed,
        output_dir=arguments.output_dir,
    )
    print(summary(report))
    print(f"open {Path(arguments.output_dir) / 'report.html'}")


def as_settings(arguments: Namespace, config_class: type) -> dict[str, Any]:
    """The fields of a config among the parsed arguments, nested ones as dataclasses."""
    settings = {}
    kinds: dict[str, Any] = get_type_hints(config_class)
    for field in fields(config_class):
        value, kind = arguments[field.name], kinds[field.name]
        if isinstance(kind, type) and is_dataclass(kind):
            if not isinstance(value, Namespace):  # the parser lets `training: 3` in a file pass
                raise UserError(f"{field.name} must be a group of settings, not {value!r}")
            value = kind(**value.as_dict())
        settings[field.name] = value
    return settings


def quiet_libraries() -> None:
    """Their progress bars and notes would stand between a person and ours."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
