"""The command line's entry: which verbs there are, and how one ends.

Their parsers are in ``running.py``, ``measuring.py`` and ``sharing.py``; what each does is in ``verbs.py``, of
``plan``, ``memory`` and ``evaluate`` in ``verb_plan.py``, ``verb_memory.py`` and ``verb_evaluate.py``.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from ..errors import UserError
from .measuring import evaluate_parser, memory_parser, plan_parser, report_parser, statistics_parser
from .mistakes import OneLineParser, fail, is_main_process
from .running import demo_parser, distill_parser, sample_parser, teach_parser
from .sharing import export_parser, push_parser
from .verb_evaluate import run_evaluate
from .verb_memory import run_memory
from .verb_plan import run_plan
from .verbs import (
    run_demo,
    run_distill,
    run_export,
    run_push,
    run_report,
    run_sample,
    run_statistics,
    run_teach,
)

log = logging.getLogger("ddpm_redistill")


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
