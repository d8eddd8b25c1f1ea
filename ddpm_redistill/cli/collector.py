"""Python's collector of cyclic garbage, switched off for verbs that end in seconds."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """Inside the ``with`` no garbage is collected, nor when the process ends.

    To look for garbage takes the longer the more objects there are, and the 400,000 that torch and diffusers make
    when they are imported all stay: it took a sixth of the time of the imports, and a second at the end.
    """
    enabled = gc.isenabled()
    gc.disable()
    atexit.register(gc.freeze)  # the last collection passes over what is frozen
    try:
        yield
    finally:
        if enabled:
            gc.enable()
