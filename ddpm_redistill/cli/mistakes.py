"""How the command line takes a person's mistake: one line on standard error, and exit code 2."""

import os
import re
import sys
import time
from typing import NoReturn

from jsonargparse import ArgumentParser

SECONDS_FOR_THE_MAIN_PROCESS = 10.0
"""For which another process keeps its own mistake to itself."""
UNION = re.compile(
    r"Does not validate against any of the Union subtypes .*?Errors: - (.*) Given value type: .*? Given value: (.*)"
)
"""jsonargparse's words on a value that is of none of several types."""


class OneLineParser(ArgumentParser):
    """A mistake in the arguments is one line on standard error, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(UNION.sub(_of_several_types, one_line(message)))


def _of_several_types(found: re.Match[str]) -> str:
    return f"{found[1].replace(' - Expected', ' or')}. Got value: {found[2]}"


def one_line(message: str) -> str:
    return " ".join(message.split())


def fail(message: str) -> NoReturn:
    if not is_main_process():  # the main one has met the same mistake as a rule: torchrun then ends this one too
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
    print("ddpm-redistill: error: " + one_line(str(message)), file=sys.stderr)
    sys.exit(2)


def is_main_process() -> bool:
    """The first of the processes that torchrun has started, or the only one. Without torch, which takes seconds."""
    return os.environ.get("RANK", "0") == "0"
