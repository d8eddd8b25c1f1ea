"""SIGTERM and Ctrl-C while training: the step in hand is finished, a checkpoint is written, then the run ends."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKERS_GRACE = 20.0
"""Seconds."""
ONE_REQUEST = 0.5
"""Seconds in which signals count as one: a shell, torchrun and a job system may each pass on the same Ctrl-C."""


class Stopped(SystemExit):
    """A run that ended because it was asked to, after a checkpoint. Exit code: 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(128 + number)


class Shutdown:
    """Inside the ``with`` a first signal is remembered, and a second ends the process at once."""

    def __init__(self, accelerator: Accelerator):
        self.number, self._since = 0, 0.0
        self._before: dict[signal.Signals, Any] = {}
        several = accelerator.num_processes > 1
        # Of its own, over the CPU: asked after every step, it makes no step wait for the device.
        self._group: Any = torch.distributed.new_group(backend="gloo") if several else None

    def __enter__(self) -> "Shutdown":
        if threading.current_thread() is threading.main_thread():  # Python allows it in no other
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
            # Not by the log: what it writes to may be in the middle of a line of its own.
            os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")
        elif now - self._since > ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def requested(self) -> int:
        """The number of the signal that any of the processes got, or 0: the same in all, which must all ask."""
        if self._group is None:
            return self.number
        number = torch.tensor(self.number)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(number)


def in_worker(worker: int) -> None:
    """For a loader's worker, to which a terminal, torchrun or a job system sends the signals too.

    The run says when it ends: Ctrl-C is ignored, and after SIGTERM it serves the step in hand before it goes. It does
    go: Python, at its own end, waits for the workers to which it has sent SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.setitimer(signal.ITIMER_REAL, WORKERS_GRACE))
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))  # killed, it would raise in the middle of a step
