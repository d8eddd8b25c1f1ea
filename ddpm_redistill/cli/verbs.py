"""What each verb of the command line does: a function of its parsed arguments that joins the rooms of the house.

torch is imported when work starts, so that ``--help`` and a mistyped option answer at once.
"""

import json
import logging
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml
from jsonargparse import Namespace

from ..config import DistillConfig, LossConfig, StudentConfig, TeachConfig, TrainingConfig
from ..errors import UserError
from ..units import MIB
from .options import COMPILE
from .text import (
    push_text,
    summary,
)

if TYPE_CHECKING:
    pass

log = logging.getLogger("ddpm_redistill")

DEMO_CONFIG = Path(__file__).parent.parent / "builtin" / "demo.yaml"
DEMO_IMAGES = 500
DEMO_STEPS = 25


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

        from ..sharing.renew import renew_card

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
    from ..sharing.renew import renew_card
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
