"""Options that several verbs take, said once."""

from typing import Literal

from jsonargparse import ArgumentParser

TEACHER_HELP = "a diffusers folder, a hub id, or builtin:digits"
DATA_HELP = "a folder of images, an .npz of uint8 NHWC images, torchvision:NAME, hub:NAME or builtin:digits"


def add_sampling(parser: ArgumentParser) -> None:
    parser.add_argument("--scheduler", type=str, default="ddim", help="ddpm, ddim or dpm++")
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="images sampled at once; default 64 on a CPU, on a GPU the largest power of two up to 512 that fits into"
        " half of its free memory",
    )
    parser.add_argument(
        "--compile",
        type=Literal["auto", "on", "off"],
        default="auto",
        help="how a sampling step runs, with the same images to rounding: off: as it is; on: compiled by torch, which"
        " takes about a minute, and on a GPU captured in a CUDA graph; auto: as it is on a CPU, captured on a GPU, and"
        " there compiled too for a long run",
    )
    parser.add_argument("--seed", type=int, default=0, help="image k is a function of the seed and k")


COMPILE: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
"""Values of --compile, as ``RedDDPMPipeline`` takes them."""


def add_spacing(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--spacing",
        type=str | None,
        default=None,
        help="of the timesteps of ddim: trailing (default), leading or quad; ddpm is leading and dpm++ trailing",
    )
    parser.add_argument("--eta", type=float, default=0.0, help="of ddim: fresh noise in each step, from 0 to 1")


def add_guidance(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--guidance",
        type=float | None,
        default=None,
        help="of a model with classes, the scale of classifier-free guidance, where 1 is none: two passes a step, or"
        " one of a student that has learned this scale; default: as the model is",
    )


def add_data_range(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data_range",
        type=float | None,
        default=None,
        help="the value of the images that becomes white, as 4095; default the end of the range of the files",
    )


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


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")
