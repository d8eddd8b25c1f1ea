"""Bad inputs, each refused in one line with exit code 2 and nothing left behind.

``python tests/test_bad_inputs.py`` prints them as the Markdown table of docs/bad_inputs.md.
"""

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import pytest
from bad_input_classifiers import classifier_rows
from bad_input_exports import export_rows, make_exports
from bad_input_files import make_place
from bad_input_helpers import Row, rows

from ddpm_redistill.cli import main

LONGEST = 10.0  # seconds
ROWS = [*rows(), *classifier_rows(), *export_rows()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    make_place(place)
    make_exports(place)
    return place


def argv_of(row: Row, place: Path, out: Path) -> list[str]:
    values = {"place": place, "data": place / "images.npz", "good": place / "good.yaml", "out": out}
    return [part.format(**values) for part in row.argv.split(" ")]


def refuse(argv: list[str], without: str) -> tuple[str, int | None, float]:
    """What a verb prints on both streams, its exit code (None if it ended well) and how many seconds it took."""
    printed, started, code = io.StringIO(), time.perf_counter(), None
    redirected = (contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed))
    with pytest.MonkeyPatch.context() as patch, redirected[0], redirected[1]:
        if without:
            patch.setitem(sys.modules, without, None)  # Python's way to say that it cannot be imported
        try:
            main(argv)
        except SystemExit as ended:
            code = ended.code
    return printed.getvalue(), code, time.perf_counter() - started


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_there_are_enough_of_every_verb():
    assert len({row.what for row in ROWS}) == len(ROWS) >= 120
    verbs = {row.argv.split()[0] for row in ROWS}
    measuring = {"plan", "evaluate", "statistics", "report", "memory"}
    assert verbs == {"distill", "teach", "sample", "export", "push", *measuring}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_refused(row, place, tmp_path, monkeypatch, caplog):
    if "onnx" in row.argv and not row.without:
        pytest.importorskip("onnxruntime")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")  # the default output folders are relative
    before = files(place)
    out = tmp_path / "out"
    printed, code, seconds = refuse(argv_of(row, place, out), row.without)
    assert code == 2, printed
    assert printed.startswith("ddpm-redistill: error: ")
    assert printed.count("\n") == 1, printed
    assert row.words.format(place=place, out=out) in printed
    assert caplog.messages == []  # outside of pytest they would be on standard error too
    assert seconds < LONGEST
    assert [path.name for path in files(tmp_path)] == ["work"]
    assert files(place) == before


def table() -> str:
    """Markdown: what is wrong, the command, what is printed, the exit code."""
    lines = ["| what is wrong | command | what it prints | exit code |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "in"
        make_place(place)
        make_exports(place)
        for row in ROWS:
            printed, code, _ = refuse(argv_of(row, place, Path(folder) / "out"), row.without)
            said = printed.strip().removeprefix("ddpm-redistill: error: ").replace(f"{place}/", "")
            said = said.replace(str(folder), "").replace("|", "\\|")
            names = {"place": "", "data": "images.npz", "good": "good.yaml", "out": "out"}
            command = row.argv.replace("{place}/", "").format(**names).replace("|", "\\|")
            lines.append(f"| {row.what} | `{command}` | {said} | {code} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
