"""Parsers of the verbs that give a network away: export, push."""

from jsonargparse import ArgumentParser

from .mistakes import OneLineParser
from .options import DATA_HELP, TEACHER_HELP, add_data_range


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
    add_data_range(parser)
    parser.add_argument(
        "--calibration_images", type=int | None, default=None, help="taken of --data, for int8; default 256"
    )
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
