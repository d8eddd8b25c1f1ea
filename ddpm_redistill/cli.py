"""The command line: one parser for each verb; what each verb does is in ``verbs.py``."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser

from .config import DistillConfig, TeachConfig
from .errors import UserError
from .verbs import (
    run_demo,
    run_distill,
    run_evaluate,
    run_export,
    run_memory,
    run_plan,
    run_push,
    run_report,
    run_sample,
    run_statistics,
    run_teach,
)

log = logging.getLogger("ddpm_redistill")

TEACHER_HELP = "a diffusers folder, a hub id, or builtin:digits"
DATA_HELP = "a folder of images, an .npz of uint8 NHWC images, torchvision:NAME, hub:NAME or builtin:digits"
SCHEDULER_HELP = "ddpm, ddim or dpm++"

SECONDS_FOR_THE_MAIN_PROCESS = 10.0
"""For which another process keeps its own mistake to itself."""


class OneLineParser(ArgumentParser):
    """A mistake in the arguments is one line on standard error, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(message)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb. Exits with 2 after a person's mistake, 130 after Ctrl-C, 143 after SIGTERM in a training."""
    parser, verbs = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except UnicodeDecodeError as error:
        fail(f"the config file is not UTF-8 text: {error}")
    verb = arguments.verb
    if verb is None:
        parser.print_help()
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO if is_main_process() else logging.WARNING)
    try:
        verbs[verb](arguments[verb])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        fail(str(error))
    except KeyboardInterrupt:
        if is_main_process():
            print("ddpm-redistill: interrupted", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> NoReturn:
    if not is_main_process():  # the main one has met the same mistake as a rule: torchrun then ends this one too
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
    print("ddpm-redistill: error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def is_main_process() -> bool:
    """The first of the processes that torchrun has started, or the only one. Without torch, which takes seconds."""
    return os.environ.get("RANK", "0") == "0"


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
        "statistics": (statistics_parser, run_statistics, "measure a data set once, for later evaluations"),
        "export": (export_parser, run_export, "write a network for other runtimes: ONNX, torch.export, ExecuTorch"),
        "memory": (memory_parser, run_memory, "peak memory of a network by every definition"),
        "report": (report_parser, run_report, "lay evaluated runs beside each other on one page"),
        "push": (push_parser, run_push, "publish a student folder with its model card"),
        "demo": (demo_parser, run_demo, "the whole flow on the embedded teacher and data, a few minutes"),
    }
    for name, (make, _, description) in table.items():
        verbs.add_subcommand(name, make(), help=description)
    return parser, {name: run for name, (_, run, _) in table.items()}


def plan_parser() -> ArgumentParser:
    parser = OneLineParser(description="Show the student a teacher would get, and the memory of both.")
    parser.add_argument("teacher", type=str, help=TEACHER_HELP)
    parser.add_argument(
        "--reduction", type=int | None, default=None, help="feature maps this much smaller a side: 2 (default), 4 or 8"
    )
    parser.add_argument(
        "--red_placement",
        type=Literal["full", "outer", "none"] | None,
        default=None,
        help="RED blocks; default full",
    )
    parser.add_argument(
        "--widen",
        type=list[int] | None,
        default=None,
        help="times the teacher's channels, level by level, as [1,1,2,2]; default 1 everywhere",
    )
    parser.add_argument("--image_size", type=int | None, default=None, help="pixels a side; default the teacher's own")
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help="find the smallest change that fits, as 1MiB, with one image at a time: lean execution, bfloat16,"
        " a student; --reduction (then 1 is the teacher itself) and --red_placement narrow the search;"
        " exit code 1 when nothing fits",
    )
    parser.add_argument(
        "--budget_counts",
        type=Literal["activations", "total"],
        default="activations",
        help="what must fit: activations (the exact tensor peak), or total (that and the weights)",
    )
    add_json(parser)
    return parser


def memory_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Peak memory of a network, teacher or student, by every definition. Exit code: 0; 1 when the peak"
        " is over --fail_over; 2 after a mistake in the arguments."
    )
    parser.add_argument("model", type=str, help=TEACHER_HELP)
    parser.add_argument("--teacher", type=str | None, default=None, help="a second network beside it, named likewise")
    parser.add_argument("--batch_size", type=int, default=1, help="images in one forward")
    parser.add_argument("--image_size", type=int | None, default=None, help="pixels a side; default the network's own")
    add_dtype(parser)
    add_lean(parser, "setting of lean execution that --fail_over judges and --timeline adds; default: eager execution")
    parser.add_argument(
        "--fail_over", type=str | None, default=None, help="exit with 1 when the model's tensor_peak is over, as 1.5MiB"
    )
    parser.add_argument("--timeline", type=str | None, default=None, help="folder for timeline.csv and timeline.png")
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
    parser = OneLineParser(
        description="Sample images from a teacher or a student, as PNG files or one .npz. Several processes, by"
        " torchrun, make the same files."
    )
    parser.add_argument("model", type=str, help=f"{TEACHER_HELP}; or an ONNX file that export wrote")
    parser.add_argument("--num_images", type=int, default=64, help="images")
    parser.add_argument(
        "--output", type=str, required=True, help="folder for the PNG files, new or empty, or a new FILE.npz"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where a run was killed, or make more images of the same settings"
    )
    parser.add_argument("--steps", type=int, default=50, help="network evaluations an image (NFE)")
    add_sampling(parser)
    add_spacing(parser)
    add_lean(parser, "run the network lean: the same images with less live memory; default: eager execution")
    add_dtype(parser)
    return parser


def evaluate_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Compare a model, or images made elsewhere, with data and a teacher; writes report.html and"
        " report.json."
    )
    parser.add_argument("model", type=str, help=f"{TEACHER_HELP}; or images: a folder of them or an .npz")
    parser.add_argument("--teacher", type=str | None, default=None, help=TEACHER_HELP)
    parser.add_argument("--data", type=str | None, default=None, help=f"{DATA_HELP}; or an .npz of statistics")
    parser.add_argument("--num_images", type=int, default=2000, help="images sampled of each, and taken of the data")
    parser.add_argument("--output_dir", type=str | None, default=None, help="default: the model's run folder")
    parser.add_argument(
        "--steps", type=str, default="50", help="network evaluations an image (NFE); several, as 10,20,50, are compared"
    )
    add_sampling(parser)
    add_spacing(parser)
    add_extractor(parser)
    add_json(parser)
    return parser


def statistics_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Measure a data set once: mean, covariance and features of its images in one .npz, which evaluate"
        " takes as --data. Size: 8 D^2 + 4 N D bytes, 23 MB for 2,000 images of EfficientNet-lite0's 1,280 features."
    )
    parser.add_argument("data", type=str, help=DATA_HELP)
    parser.add_argument("--output", type=str, required=True, help="FILE.npz, new")
    parser.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="pixels a side, as the model to be evaluated has; default the images' own, which must agree",
    )
    parser.add_argument(
        "--channels", type=int | None, default=None, help="1 (grey) or 3 (RGB); default the images' own, or 3"
    )
    parser.add_argument("--num_images", type=int | None, default=None, help="chosen by the seed; default all")
    parser.add_argument("--seed", type=int, default=0, help="the one of evaluate gives the images it would choose")
    add_extractor(parser)
    return parser


def export_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Write a network, teacher or student, as a file that other runtimes read. It is held against the"
        " original on random inputs before it is put in place, and its noise schedule travels with it."
    )
    parser.add_argument("model", type=str, help=TEACHER_HELP)
    parser.add_argument("--format", type=str, required=True, help="onnx, torch_export or executorch")
    parser.add_argument("--output", type=str, required=True, help="FILE.onnx, FILE.pt2 or FILE.pte, new")
    parser.add_argument(
        "--batch_size", type=int | None, default=None, help="images in every call of the file; default any"
    )
    parser.add_argument("--opset", type=int | None, default=None, help="of ONNX, 18 (default) to 25")
    parser.add_argument(
        "--quantise",
        type=str | None,
        default=None,
        help="ONNX as int8_weights (a quarter of the size), or as int8: activations too, calibrated on --data",
    )
    parser.add_argument("--data", type=str | None, default=None, help=f"training images, for int8: {DATA_HELP}")
    parser.add_argument("--calibration_images", type=int, default=256, help="taken of --data, for int8")
    return parser


def report_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Lay evaluated runs beside each other on one page: a row a run, the best of each column in bold."
        " Runs whose distances were not taken alike (extractor, number of images, data) get tables of their own, and"
        " the page says so."
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders that hold a report.json, or such files")
    parser.add_argument(
        "--output",
        type=str,
        default="runs/comparison.html",
        help="the page; a file that is there already is only written over if it is an earlier comparison",
    )
    add_json(parser)
    return parser


def push_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Upload a student folder to a model hub, with a model card written from its report. The token is"
        " that of `hf auth login` or HF_TOKEN; it is never asked for or shown."
    )
    parser.add_argument("model", type=str, help="a student folder that distill has written")
    parser.add_argument("repository", type=str, help="owner/name; it is made if there is none")
    parser.add_argument(
        "--report", type=str | None, default=None, help="report.json for the card; default that of the student's run"
    )
    parser.add_argument("--private", action="store_true", help="a repository that is made is for its owner alone")
    parser.add_argument("--dry_run", action="store_true", help="list the files and stop: nothing is written or sent")
    return parser


def demo_parser() -> ArgumentParser:
    parser = OneLineParser(description="The whole flow on the embedded teacher and data: distil, compare, report.")
    parser.add_argument("--output_dir", type=str, default="runs/demo", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser


def add_sampling(parser: ArgumentParser) -> None:
    parser.add_argument("--scheduler", type=str, default="ddim", help=SCHEDULER_HELP)
    parser.add_argument("--batch_size", type=int, default=64, help="images sampled at once")
    parser.add_argument("--seed", type=int, default=0, help="image k is a function of the seed and k")


def add_spacing(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--spacing",
        type=str | None,
        default=None,
        help="of the timesteps of ddim: trailing (default), leading or quad; ddpm is leading and dpm++ trailing",
    )
    parser.add_argument("--eta", type=float, default=0.0, help="of ddim: fresh noise in each step, from 0 to 1")


def add_extractor(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--inception_weights", type=str | None, default=None, help="torch-fidelity's Inception weights, for FID and IS"
    )
    parser.add_argument(
        "--extractor", type=str | None, default=None, help="module:Class, one's own torch-fidelity FeatureExtractorBase"
    )


def add_lean(parser: ArgumentParser, help: str) -> None:
    parser.add_argument("--lean", type=Literal["fast", "balanced", "smallest"] | None, default=None, help=help)


def add_dtype(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", type=Literal["float32", "bfloat16", "float16"], default="float32", help="of weights and activations"
    )


def add_run_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="go on from the newest intact checkpoint in output_dir")
    parser.add_argument(
        "--resume_anyway",
        action="store_true",
        help="--resume with other settings, as far as these are safe to change: docs/reliability.md lists them",
    )
    parser.add_argument("--dry_run", action="store_true", help="check everything, show the resolved config, and stop")


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")
