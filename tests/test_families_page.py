"""docs/families.md does what it says: its blocks of code are taken out of the page and run, in its order."""

import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from ddpm_redistill.cli import main
from ddpm_redistill.errors import UserError
from ddpm_redistill.families import own
from ddpm_redistill.families.classifier_files import find_config

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = ["--training.steps", "3", "--training.batch_size", "8", "--training.sample_every", "0"]


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block of code of the section."""
    section = PAGE.read_text().split("## Bring your own network")[1].split("\n## ")[0]
    return BLOCK.findall(section)


@pytest.fixture
def _a_new_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder that is the current one, and that packages are found in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own._families.cache_clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    own._families.cache_clear()
    sys.modules.pop("my_networks", None)
    AcceleratorState._reset_state(reset_partial_state=True)


def install(project: str) -> None:
    """What pip makes of pyproject.toml: a record of the package with its entry points. ``pip`` itself may need the
    network."""
    told = tomllib.loads(project)["project"]
    record = Path(f"my_networks-{told['version']}.dist-info")
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n")
    lines = []
    for group, points in told["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (record / "entry_points.txt").write_text("\n".join(lines) + "\n")
    own._families.cache_clear()


@pytest.mark.usefixtures("_a_new_place")
def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    printed, done = "", []
    for language, text in blocks():
        name = re.match(r"# (\w+\.py)\n", text)
        if name is not None:
            Path(name[1]).write_text(text)
        if language == "toml":
            install(text)
        elif name is not None and name[1] != "my_networks.py":
            runpy.run_path(name[1])
            done.append(name[1])
        for line in text.splitlines() if language == "sh" else ():
            command, *argv = shlex.split(line)
            if command == "pip":
                assert argv == ["install", "-e", "."]
                continue
            assert command == "ddpm-redistill"
            AcceleratorState._reset_state(reset_partial_state=True)
            main([*argv, *(SHORT if argv[0] in ("teach", "distill") else ())])
            done.append(argv[0])
        printed += capsys.readouterr().out
    assert done == ["plan", "teach", "save_teacher.py", "distill", "open_student.py"]
    assert "strides [1, 2, 2, 2] -> [4, 2, 1, 1]" in printed
    assert "steps:16, 32 px, 1 channel, 10 classes (1, 10)" in printed
    assert len(list(Path("runs/steps_x4/student").iterdir())) >= 2
    with pytest.raises(UserError, match="there is no steps:wide: invalid literal for int"):
        find_config("steps:wide")


def test_the_page_is_short() -> None:
    assert sum(len(text.splitlines()) for language, text in blocks() if language in ("python", "toml")) < 100
