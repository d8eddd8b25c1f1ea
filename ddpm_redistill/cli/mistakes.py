"""How the command line takes a person's mistake: one line on standard error, and exit code 2."""

import os
import sys
import time
from typing import NoReturn

from jsonargparse import ArgumentParser

SECONDS_FOR_THE_MAIN_PROCESS = 10.0
"""For which another process keeps its own mistake to itself."""


class OneLineParser(ArgumentParser):
    """A mistake in the arguments is one line on standard error, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(message)


def fail(message: str) -> NoReturn:
    if not is_main_process():  # the main one has met the same mistake as a rule: torchrun then ends this one too
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
    print("ddpm-redistill: error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def is_main_process() -> bool:
    """The first of the processes that torchrun has started, or the only one. Without torch, which takes seconds."""
    return os.environ.get("RANK", "0") == "0"
