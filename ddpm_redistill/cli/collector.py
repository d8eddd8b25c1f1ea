"""Python's collector of cyclic garbage, and verbs that end in seconds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """Inside the ``with`` no garbage is looked for. The more objects there are the longer that takes, and those that
    torch and diffusers make when they are imported all stay: it was a sixth of the import's seconds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
