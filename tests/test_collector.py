"""No garbage collection while a short verb runs, and none missing after it."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ddpm_redistill.cli.collector import collector_off


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_it_is_off_inside_and_on_after() -> None:
    with collector_off():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_on_after_a_mistake() -> None:
    @collector_off()
    def fail() -> None:
        assert not gc.isenabled()
        raise SystemExit(2)

    for _ in range(2):
        with pytest.raises(SystemExit):
            fail()
        assert gc.isenabled()


def test_who_had_it_off_keeps_it_off() -> None:
    gc.disable()
    with collector_off():
        pass
    assert not gc.isenabled()


GARBAGE = """
class Garbage:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        print("collected")
"""


@pytest.mark.parametrize(("verb", "printed"), [("pass", "collected"), ("with collector_off(): pass", "")])
def test_nothing_is_collected_when_the_process_ends(verb: str, printed: str) -> None:
    program = f"from ddpm_redistill.cli.collector import collector_off{GARBAGE}{verb}\nGarbage()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr
