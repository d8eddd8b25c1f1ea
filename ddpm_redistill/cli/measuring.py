"""Parsers of the verbs that measure: plan, memory, evaluate, statistics, report."""

from typing import Any, Literal

from jsonargparse import ArgumentParser

from ..recipes import DEFAULT, RECIPES
from .mistakes import OneLineParser
from .options import (
    DATA_HELP,
    TEACHER_HELP,
    add_data_range,
    add_dtype,
    add_extractor,
    add_guidance,
    add_json,
    add_lean,
    add_sampling,
    add_spacing,
)


def plan_parser() -> ArgumentParser:
    parser = OneLineParser(description="Show the student a teacher would get, and the memory of both.")
    parser.add_argument("teacher", type=str, help=TEACHER_HELP)
    parser.add_argument(
        "--reduction",
        type=int | None,
        default=None,
        help="feature maps this much smaller a side: 2 (default), 4 or 8; with --cheap also 1",
    )
    parser.add_argument(
        "--red_placement",
        type=Literal["full", "outer", "none"] | None,
        default=None,
        help=f"RED blocks; default {RECIPES[DEFAULT]['student']['red_placement']}",
    )
    parser.add_argument(
        "--widen",
        type=list[int] | None,
        default=None,
        help="times the teacher's channels, level by level, as [1,1,2,2]; default 1 everywhere",
    )
    parser.add_argument(
        "--cheap",
        type=list[str] | str | None,
        default=None,
        help="what stands for the 3x3 convolutions of the residual blocks, as G8B2, or level by level, as"
        " [S,S,G8B2,G8B2]; default they stay",
    )
    parser.add_argument(
        "--architecture",
        type=str | None,
        default=None,
        help="of a classifier's student that is not made of its teacher's layers: a vision transformer, timm:NAME",
    )
    parser.add_argument(
        "--arguments",
        type=dict[str, Any] | None,
        default=None,
        help="of that network, as {patch_size: 4, embed_dim: 96, depth: 6, num_heads: 3}",
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
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="say what memory a training step with so many images at a time takes too, which takes some seconds;"
        " training's default is 64",
    )
    add_json(parser)
    return parser


def memory_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Peak memory of a network, teacher or student, by every definition; or what an ExecuTorch program"
        " has planned. Exit code: 0; 1 when the peak is over --fail_over; 2 after a mistake in the arguments."
    )
    parser.add_argument("model", type=str, help=f"{TEACHER_HELP}; or a FILE.pte that export wrote")
    parser.add_argument("--teacher", type=str | None, default=None, help="a second network beside it, named likewise")
    parser.add_argument("--batch_size", type=int, default=1, help="images in one forward")
    parser.add_argument("--image_size", type=int | None, default=None, help="pixels a side; default the network's own")
    add_dtype(parser)
    add_lean(parser, "setting of lean execution that --fail_over judges and --timeline adds; default: eager execution")
    parser.add_argument(
        "--fail_over", type=str | None, default=None, help="exit with 1 when the model's peak is over, as 1.5MiB"
    )
    parser.add_argument("--timeline", type=str | None, default=None, help="folder for timeline.csv and timeline.png")
    add_json(parser)
    return parser


def evaluate_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Compare a model, or images made elsewhere, with data and a teacher; writes report.html and"
        " report.json."
    )
    parser.add_argument("model", type=str, help=f"{TEACHER_HELP}; or images: a folder of them or an .npz")
    parser.add_argument("--teacher", type=str | None, default=None, help=TEACHER_HELP)
    parser.add_argument("--data", type=str | None, default=None, help=f"{DATA_HELP}; or an .npz of statistics")
    add_data_range(parser)
    parser.add_argument("--num_images", type=int, default=2000, help="images sampled of each, and taken of the data")
    parser.add_argument("--output_dir", type=str | None, default=None, help="default: the model's run folder")
    parser.add_argument(
        "--steps", type=str, default="50", help="network evaluations an image (NFE); several, as 10,20,50, are compared"
    )
    add_sampling(parser)
    add_spacing(parser)
    add_guidance(parser)
    add_dtype(parser)
    add_extractor(parser)
    add_json(parser)
    return parser


def statistics_parser() -> ArgumentParser:
    parser = OneLineParser(
        description="Measure a data set once: mean, covariance and features of its images in one .npz, which evaluate"
        " takes as --data. Size: 8 D^2 + 4 N D bytes, 23 MB for 2,000 images of EfficientNet-lite0's 1,280 features."
    )
    parser.add_argument("data", type=str, help=DATA_HELP)
    add_data_range(parser)
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
