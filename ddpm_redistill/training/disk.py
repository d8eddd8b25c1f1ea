"""What a disk refuses, in one line; and what the main process does alone, with its outcome known to all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from ..errors import UserError
from ..units import MIB

T = TypeVar("T")


@contextmanager
def written(path: Path, need: int = 0, hint: str = "") -> Iterator[None]:
    """Around what writes ``path``. ``need``: its bytes, if known; ``hint``: ends the line.

    Raises:
        UserError: the disk refused it; naming it, why, and the MiB needed and free.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has no OSError of its own for a full disk
        there = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
        sizes = [f"{need / MIB:.1f} MiB are needed"] if need else []
        sizes += [f"{shutil.disk_usage(there).free / MIB:.1f} MiB are free"] if there else []
        why = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        line = f"{path} could not be written: {why} ({', '.join(sizes)})"
        raise UserError(f"{line}{'; ' if hint else ''}{hint}") from error


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do ``work`` in the main process, while the others wait -> its result, in every process.

    Raises:
        UserError: in every process, when ``work`` raised it or an OSError: no process waits for one that has ended.
    """
    result, problem, cause = None, None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except (UserError, OSError) as error:
            problem, cause = str(error), error
    result, problem = broadcast_object_list([result, problem])
    if problem is not None:
        raise UserError(problem) from cause
    return result  # type: ignore[return-value]
