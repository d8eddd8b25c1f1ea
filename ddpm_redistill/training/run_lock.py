"""One run at a time in a folder: a lock that says who holds it, and that ends with the process that holds it."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

NAME = ".lock"

_held: set[int] = set()


def _let_go() -> None:
    """In a forked process, as a loader's worker is: it would hold the lock on after its run was killed."""
    for descriptor in _held:
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def check_unlocked(folder: Path) -> None:
    """Raises UserError, naming who holds it, when a run is at work in the folder."""
    if (folder / NAME).is_file():
        with _taken(folder, os.O_RDONLY, fcntl.LOCK_SH):
            pass


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock``, a flock: the system lets go of it when this process ends, in whatever way.

    Raises:
        UserError: another run holds it, and which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _taken(folder, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as descriptor:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        _held.add(descriptor)
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder).encode())
            yield
        finally:
            os.ftruncate(descriptor, 0)  # it stays, empty: a name that is deleted and made anew can be locked twice
            _held.discard(descriptor)


@contextlib.contextmanager
def _taken(folder: Path, flags: int, kind: int) -> Iterator[int]:
    descriptor = os.open(folder / NAME, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            by = _holder(os.read(descriptor, 1000))
            raise UserError(f"{folder} is in use by {by}: wait for it, or give another output_dir") from None
        yield descriptor
    finally:
        os.close(descriptor)


def _holder(written: bytes) -> str:
    try:
        by = json.loads(written)
        return f"process {by['pid']} on {by['host']} since {by['since']}"
    except (ValueError, KeyError, TypeError):  # it has only just taken it
        return "another run"
