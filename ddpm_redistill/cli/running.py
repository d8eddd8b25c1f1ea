"""Parsers of the verbs that train or sample: teach, distill, sample, demo."""

from jsonargparse import ArgumentParser

from ..config import DistillConfig, TeachConfig
from .mistakes import OneLineParser
from .options import TEACHER_HELP, add_dtype, add_guidance, add_lean, add_sampling, add_spacing


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


def add_run_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="go on from the newest intact checkpoint in output_dir")
    parser.add_argument(
        "--resume_anyway",
        action="store_true",
        help="--resume with other settings, as far as these are safe to change: docs/reliability.md lists them",
    )
    parser.add_argument("--dry_run", action="store_true", help="check everything, show the resolved config, and stop")


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
    parser.add_argument(
        "--labels",
        type=str | None,
        default=None,
        help="of a model with classes, the labels that images take in turn, as 3 or 0,1,2; default: all classes",
    )
    add_guidance(parser)
    add_lean(parser, "run the network lean: the same images with less live memory; default: eager execution")
    add_dtype(parser)
    return parser


def demo_parser() -> ArgumentParser:
    parser = OneLineParser(description="The whole flow on the embedded teacher and data: distil, compare, report.")
    parser.add_argument("--output_dir", type=str, default="runs/demo", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser
