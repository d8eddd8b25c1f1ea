"""What ``evaluate`` does: of a DDPM its samples are measured, of a classifier what it says of labelled images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ..errors import UserError
from .options import COMPILE
from .text import summary
from .verbs import quiet_libraries

OF_DDPMS: dict[str, Any] = {
    "num_images": 2000,
    "steps": "50",
    "scheduler": "ddim",
    "spacing": None,
    "eta": 0.0,
    "guidance": None,
    "compile": "auto",
    "dtype": "float32",
    "seed": 0,
    "inception_weights": None,
    "extractor": None,
}
"""Options that a classifier has no use for, and their defaults."""


def run_evaluate(arguments: Namespace) -> None:
    from ..families.registry import find_family
    from ..sharing.renew import renew_card

    quiet_libraries()
    folder = Path(arguments.model)
    in_run = (folder.parent / "config.yaml").is_file()
    output_dir = Path(arguments.output_dir or (folder.parent if in_run else "runs/evaluate"))
    report = EVALUATE[find_family(arguments.model)[1].TASK](arguments, output_dir)
    renew_card(arguments.model, output_dir=output_dir, measured=True)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(summary(report))


def evaluate_ddpm(arguments: Namespace, output_dir: Path) -> dict[str, Any]:
    from ..evaluation.evaluate import evaluate

    keys = ["teacher", "data", "data_range", "num_images", "scheduler", "spacing", "eta", "batch_size", "dtype"]
    keys += ["guidance", "seed", "inception_weights", "extractor"]
    return evaluate(
        arguments.model,
        **{key: arguments[key] for key in keys},
        steps=parse_steps(arguments.steps),
        compile=COMPILE[arguments.compile],
        output_dir=output_dir,
    )


def evaluate_classifier(arguments: Namespace, output_dir: Path) -> dict[str, Any]:
    wrong = next((key for key, default in OF_DDPMS.items() if arguments[key] != default), None)
    if wrong is not None:
        raise UserError(
            f"--{wrong} is for DDPMs, which are sampled, and {arguments.model} is a classifier: leave it out"
        )
    from ..evaluation.evaluate_classifier import evaluate_classifier

    keys = ("teacher", "data", "data_range", "batch_size")
    return evaluate_classifier(arguments.model, **{key: arguments[key] for key in keys}, output_dir=output_dir)


EVALUATE: dict[str, Callable[[Namespace, Path], dict[str, Any]]] = {
    "denoise": evaluate_ddpm,
    "classify": evaluate_classifier,
}
"""By the task of the model."""


def parse_steps(text: str) -> list[int]:
    """``"50"`` or ``"10,20,50"`` -> counts in rising order. Raises UserError."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--steps is {text!r}: give a number, or several as 10,20,50") from None
    if counts[0] < 1:
        raise UserError(f"steps must be at least 1, not {counts[0]}")
    return counts
