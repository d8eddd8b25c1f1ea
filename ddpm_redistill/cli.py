"""The command line: one parser for each verb, and for each verb one function that joins the rooms of the house.

torch is imported when work starts, so that ``--help`` and a mistyped option answer at once.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from .cli_text import memory_table, summary
from .config import DistillConfig, StudentConfig, TeachConfig
from .errors import UserError

log = logging.getLogger("ddpm_redistill")

DEMO_CONFIG = Path(__file__).parent / "builtin" / "demo.yaml"
DEMO_IMAGES = 500
DEMO_STEPS = 25

TEACHER_HELP = "a diffusers folder, a hub id, or builtin:digits"
DATA_HELP = "a folder of images, an .npz of uint8 NHWC images, torchvision:NAME, hub:NAME or builtin:digits"
SCHEDULER_HELP = "ddpm, ddim or dpm++"


class OneLineParser(ArgumentParser):
    """A mistake in the arguments is one line on standard error, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(message)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb. Exits with 2 after a person's mistake, 130 after Ctrl-C."""
    parser, verbs = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except UnicodeDecodeError as error:
        fail(f"the config file is not UTF-8 text: {error}")
    verb = arguments.verb
    if verb is None:
        parser.print_help()
        return
    quiet = os.environ.get("RANK", "0") != "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        verbs[verb](arguments[verb])
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        fail(str(error))
    except KeyboardInterrupt:
        print("ddpm-redistill: interrupted", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> NoReturn:
    print("ddpm-redistill: error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


# --- the verbs -------------------------------------------------------------------------------------------------


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
    parser = distill_parser()
    settings = parser.parse_args(["--config", str(DEMO_CONFIG)])
    config = replace(
        DistillConfig(**as_settings(settings, DistillConfig)), output_dir=arguments.output_dir, seed=arguments.seed
    )
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


# --- the parsers -----------------------------------------------------------------------------------------------


def build_parser() -> tuple[ArgumentParser, dict[str, Any]]:
    parser = OneLineParser(
        prog="ddpm-redistill",
        description="Distil a pretrained DDPM into a student whose peak memory is four times smaller.",
    )
    verbs = parser.add_subcommands(dest="verb", required=False)
    table = {
        "plan": (plan_parser, run_plan, "show the student a teacher would get, and the memory of both"),
        "teach": (teach_parser, run_teach, "train a DDPM teacher from images"),
        "distill": (distill_parser, run_distill, "derive a student and train it against its teacher"),
        "sample": (sample_parser, run_sample, "sample images from a teacher or a student"),
        "evaluate": (evaluate_parser, run_evaluate, "compare a model with data and with its teacher"),
        "memory": (memory_parser, run_memory, "peak memory of a network by every definition"),
        "demo": (demo_parser, run_demo, "the whole flow on the embedded teacher and data, a few minutes"),
    }
    for name, (make, _, description) in table.items():
        verbs.add_subcommand(name, make(), help=description)
    return parser, {name: run for name, (_, run, _) in table.items()}


def plan_parser() -> ArgumentParser:
    parser = OneLineParser(description="Show the student a teacher would get, and the memory of both.")
    parser.add_argument("teacher", type=str, help=TEACHER_HELP)
    parser.add_argument("--reduction", type=int, default=2, help="feature maps this much smaller a side: 2, 4 or 8")
    parser.add_argument("--red_placement", type=Literal["full", "outer", "none"], default="full", help="RED blocks")
    parser.add_argument("--image_size", type=int | None, default=None, help="pixels a side; default the teacher's own")
    add_json(parser)
    return parser


def memory_parser() -> ArgumentParser:
    parser = OneLineParser(description="Peak memory of a network, teacher or student, by every definition.")
    parser.add_argument("model", type=str, help=TEACHER_HELP)
    parser.add_argument("--batch_size", type=int, default=1, help="images in one forward")
    add_json(parser)
    return parser


def teach_parser() -> ArgumentParser:
    parser = OneLineParser(description="Train a DDPM teacher from images.")
    parser.add_argument("--config", action="config", help="a YAML file of these settings")
    parser.add_class_arguments(TeachConfig, as_group=False)
    add_run_flags(parser)
    return parser


def distill_parser() -> ArgumentParser:
    parser = OneLineParser(description="Derive a student and train it against its frozen teacher.")
    parser.add_argument("--config", action="config", help="a YAML file of these settings")
    parser.add_class_arguments(DistillConfig, as_group=False)
    add_run_flags(parser)
    return parser


def sample_parser() -> ArgumentParser:
    parser = OneLineParser(description="Sample images from a teacher or a student, as PNG files.")
    parser.add_argument("model", type=str, help=TEACHER_HELP)
    parser.add_argument("--num_images", type=int, default=64, help="images")
    parser.add_argument("--output", type=str, required=True, help="folder for the PNG files, new or empty")
    add_sampling(parser)
    return parser


def evaluate_parser() -> ArgumentParser:
    parser = OneLineParser(description="Compare a model with data and its teacher; writes report.html and report.json.")
    parser.add_argument("model", type=str, help=TEACHER_HELP)
    parser.add_argument("--teacher", type=str | None, default=None, help=TEACHER_HELP)
    parser.add_argument("--data", type=str | None, default=None, help=DATA_HELP)
    parser.add_argument("--num_images", type=int, default=2000, help="images sampled of each, and taken of the data")
    parser.add_argument(
        "--inception_weights", type=str | None, default=None, help="torch-fidelity's Inception weights, for FID and IS"
    )
    parser.add_argument("--output_dir", type=str | None, default=None, help="default: the model's run folder")
    add_sampling(parser)
    add_json(parser)
    return parser


def demo_parser() -> ArgumentParser:
    parser = OneLineParser(description="The whole flow on the embedded teacher and data: distil, compare, report.")
    parser.add_argument("--output_dir", type=str, default="runs/demo", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser


def add_sampling(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=50, help="network evaluations an image (NFE)")
    parser.add_argument("--scheduler", type=str, default="ddim", help=SCHEDULER_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="images sampled at once")
    parser.add_argument("--seed", type=int, default=0, help="image k is a function of the seed and k")


def add_run_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output_dir")
    parser.add_argument("--dry_run", action="store_true", help="check everything, show the resolved config, and stop")


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")
