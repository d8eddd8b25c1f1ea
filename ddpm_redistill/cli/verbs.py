"""What each verb of the command line does: a function of its parsed arguments that joins the rooms of the house.

torch is imported when work starts, so that ``--help`` and a mistyped option answer at once.
"""

import json
import logging
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml
from jsonargparse import Namespace

from ..config import DistillConfig, LossConfig, StudentConfig, TeachConfig, TrainingConfig
from ..errors import UserError
from ..units import MIB, parse_bytes
from .collector import collector_off
from .options import COMPILE
from .text import (
    budget_commands,
    budget_text,
    free_width_text,
    memory_table,
    nothing_fits,
    push_text,
    summary,
    training_text,
)

if TYPE_CHECKING:
    from ..sources.teacher import ModelFolder
    from ..students.plan import StudentPlan

log = logging.getLogger("ddpm_redistill")

DEMO_CONFIG = Path(__file__).parent.parent / "builtin" / "demo.yaml"
DEMO_IMAGES = 500
DEMO_STEPS = 25


@collector_off()
def run_plan(arguments: Namespace) -> None:
    from ..sources.latent_images import side_of
    from ..sources.teacher import find_model
    from ..students.decoder_memory import decoder_memory
    from ..students.footprint import planned_memory, planned_report
    from ..students.free_width import free_width
    from ..students.plan import plan_student

    budget = None if arguments.budget is None else parse_bytes(arguments.budget)
    model = find_model(arguments.teacher)
    if arguments.image_size is not None and arguments.image_size < 1:
        raise UserError(f"image_size must be at least 1, not {arguments.image_size}")
    model.say()
    if arguments.batch_size is not None and (budget is not None or arguments.batch_size < 1):
        apart = "--batch_size and --budget do not go together: a budget is of one image that is sampled"
        raise UserError(apart if budget is not None else f"batch_size must be at least 1, not {arguments.batch_size}")
    own_size = model.config.get("sample_size")
    side = side_of(arguments.image_size, own_size, model.pixels_per_latent)
    config = {**model.config, "sample_size": side}
    if budget is None:
        reduction: Any = 2 if arguments.reduction is None else arguments.reduction
        options = {"red_placement": arguments.red_placement, "widen": arguments.widen}
        plan = plan_student(config, StudentConfig(reduction=reduction, **options))
        memory = planned_report(model.config, plan)
        if model.autoencoder:
            decoder = decoder_memory(model.autoencoder.config, plan.sample_size)
            memory = {name: found | decoder for name, found in memory.items()}
        peaks = {name: memory["student"][name] for name in ("tensor_peak", "tensor_peak_lean")}
        free = None if plan.widens else free_width(model.config, plan, **peaks)
        training = None if arguments.batch_size is None else training_memory(model, plan, arguments.batch_size)
        if arguments.json:
            result = {"plan": plan.to_dict(), "memory": memory, "free": free.to_dict() if free else None}
            result |= {"training": training} if training else {}
            print(json.dumps({"teacher": arguments.teacher, **result}, indent=2))
        else:
            print(plan)
            print(memory_table(memory))
            if free:
                print(free_width_text(free))
            if training:
                print(training_text(training))
        return
    if arguments.widen is not None:
        raise UserError("--widen and --budget do not go together: a budget is met by the smallest change")

    from ..students.budget import plan_under_budget

    narrowed = {"reduction": arguments.reduction, "red_placement": arguments.red_placement}
    found = plan_under_budget(config, budget, arguments.budget_counts, **narrowed)
    if arguments.json:
        print(json.dumps({"teacher": arguments.teacher, **found.to_dict()}, indent=2))
    else:
        print(budget_text(found))
        if found.plan:  # lean execution is in the lines above
            print(found.plan)
            profiles = planned_memory(model.config, found.plan)
            print(memory_table({name: profile.to_dict() for name, profile in profiles.items()}))
        if found.chosen:
            size = None if arguments.image_size == own_size else arguments.image_size
            print(budget_commands(arguments.teacher, size, found.chosen))
    if not found.chosen:
        print(f"ddpm-redistill: {nothing_fits(found)}", file=sys.stderr)
        sys.exit(1)


def training_memory(model: "ModelFolder", plan: "StudentPlan", batch_size: int) -> dict[str, int]:
    """Bytes of an eager step of this plan with the default recipe, as JSON has them."""
    from ..config import resolve
    from ..sources.teacher import load_scheduler
    from ..training.step_memory import distillation_memory

    scheduler, loss = load_scheduler(model), resolve(DistillConfig()).loss
    eager, checkpointed = (
        distillation_memory(
            *(model.config, scheduler, plan, loss),
            TrainingConfig(batch_size=batch_size, gradient_checkpointing=checkpointing),
        )
        for checkpointing in (False, True)
    )
    peaks = {"tensor_peak": eager.peak, "tensor_peak_checkpointed": checkpointed.peak}
    return {"batch_size": batch_size, "held": eager.held, **peaks}


def run_teach(arguments: Namespace) -> None:
    from ..training.teach import teach

    quiet_libraries()
    config = TeachConfig(**as_settings(arguments, TeachConfig))
    teach(config, **run_flags(arguments))


def run_distill(arguments: Namespace) -> None:
    from ..training.distill import distill

    quiet_libraries()
    config = DistillConfig(**as_settings(arguments, DistillConfig))
    student = distill(config, **run_flags(arguments))
    if student is not None:
        from accelerate import PartialState

        from ..sharing.card import renew_card

        if PartialState().is_main_process:
            renew_card(str(student), output_dir=student.parent, measured=False)


def run_flags(arguments: Namespace) -> dict[str, bool]:
    return {key: arguments[key] for key in ("resume", "resume_anyway", "dry_run")}


def run_sample(arguments: Namespace) -> None:
    from ..evaluation.sample_run import sample_to_disk

    quiet_libraries()
    keys = ("num_images", "scheduler", "spacing", "eta", "seed", "batch_size", "lean", "dtype", "resume")
    options = {key: arguments[key] for key in keys}
    options |= {"compile": COMPILE[arguments.compile], "guidance": arguments.guidance}
    options["labels"] = None if arguments.labels is None else parse_labels(arguments.labels)
    sample_to_disk(arguments.model, arguments.output, num_inference_steps=arguments.steps, **options)


def run_evaluate(arguments: Namespace) -> None:
    from ..evaluation.evaluate import evaluate
    from ..sharing.card import renew_card

    quiet_libraries()
    folder = Path(arguments.model)
    in_run = (folder.parent / "config.yaml").is_file()
    output_dir = Path(arguments.output_dir or (folder.parent if in_run else "runs/evaluate"))
    report = evaluate(
        arguments.model,
        teacher=arguments.teacher,
        data=arguments.data,
        data_range=arguments.data_range,
        num_images=arguments.num_images,
        steps=parse_steps(arguments.steps),
        scheduler=arguments.scheduler,
        spacing=arguments.spacing,
        eta=arguments.eta,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        compile=COMPILE[arguments.compile],
        guidance=arguments.guidance,
        seed=arguments.seed,
        inception_weights=arguments.inception_weights,
        extractor=arguments.extractor,
        output_dir=output_dir,
    )
    renew_card(arguments.model, output_dir=output_dir, measured=True)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(summary(report))


def run_statistics(arguments: Namespace) -> None:
    from ..evaluation.extractors import choose_extractor
    from ..evaluation.reference import write_statistics

    extractor = choose_extractor(arguments.inception_weights, arguments.extractor)
    output = Path(arguments.output)
    options = {key: arguments[key] for key in ("image_size", "channels", "num_images", "seed", "data_range")}
    features = write_statistics(arguments.data, output, extractor, **options)
    size = output.stat().st_size / MIB
    log.info("%d images measured by %s: %s", len(features), extractor.name, extractor.reason)
    log.info("statistics and features in %s, %.1f MiB", output, size)


def run_export(arguments: Namespace) -> None:
    from ..export.export_model import export_model

    quiet_libraries()
    keys = ("format", "batch_size", "opset", "quantise", "data", "data_range", "calibration_images")
    export_model(arguments.model, arguments.output, **{key: arguments[key] for key in keys})


def run_report(arguments: Namespace) -> None:
    from ..evaluation.pages.compare_page import write_comparison

    found = write_comparison(arguments.runs, arguments.output)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        counts = " and ".join(str(len(table["runs"])) for table in found["tables"])
        apart = " in separate tables: their distances do not compare" if len(found["tables"]) > 1 else ""
        print(f"{counts} run{'s' * (counts != '1')}{apart}\nopen {found['output']}")


def run_push(arguments: Namespace) -> None:
    from ..sharing.push import push

    quiet_libraries()
    options = {key: arguments[key] for key in ("report", "private", "dry_run")}
    print(push_text(push(arguments.model, arguments.repository, **options)))


def run_demo(arguments: Namespace) -> None:
    from ..evaluation.evaluate import evaluate
    from ..sharing.card import renew_card
    from ..training.distill import distill

    quiet_libraries()
    settings = yaml.safe_load(DEMO_CONFIG.read_text())
    groups = {"student": StudentConfig, "loss": LossConfig, "training": TrainingConfig}
    settings |= {name: kind(**settings.get(name, {})) for name, kind in groups.items()}
    config = DistillConfig(**settings, output_dir=arguments.output_dir, seed=arguments.seed)
    student = distill(config)
    report = evaluate(
        str(student),
        teacher=config.teacher,
        data=config.data,
        num_images=DEMO_IMAGES,
        steps=DEMO_STEPS,
        seed=arguments.seed,
        output_dir=arguments.output_dir,
    )
    renew_card(str(student), output_dir=Path(arguments.output_dir), measured=True)
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


def parse_steps(text: str) -> list[int]:
    """``"50"`` or ``"10,20,50"`` -> counts in rising order. Raises UserError."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--steps is {text!r}: give a number, or several as 10,20,50") from None
    if counts[0] < 1:
        raise UserError(f"steps must be at least 1, not {counts[0]}")
    return counts


def parse_labels(text: str) -> list[int]:
    """``"3"`` or ``"0,1,2"`` -> labels as given. Raises UserError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--labels is {text!r}: give a number, or several as 0,1,2") from None


def quiet_libraries() -> None:
    """Their progress bars and notes would stand between a person and ours."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
