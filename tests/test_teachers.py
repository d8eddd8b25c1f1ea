"""Every kind of teacher that people have through plan, distill, sample and evaluate: it works, or is one line.

``python tests/test_teachers.py`` prints the table of docs/teachers.md, which a test holds against what is said.
"""

import contextlib
import io
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from teacher_kinds import KINDS, VERBS, Kind, make_data, make_kind

from ddpm_redistill.cli import main

DOCS = Path(__file__).parents[1] / "docs" / "teachers.md"
EXTRACTOR = ["--extractor", "feature_helpers:Projection"]
TRAIN = {"steps": 3, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "sample_every": 0}
HEAD = f"| kind of teacher | {' | '.join(VERBS)} | what is said |"


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run(argv: list[str]) -> tuple[int | None, str, list[str]]:
    """Exit code (None if it ended well), standard error, and what was logged."""
    printed, said, log, code = io.StringIO(), Said(), logging.getLogger("ddpm_redistill"), None
    log.addHandler(said)
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            main(argv)
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    finally:
        log.removeHandler(said)
    return code, printed.getvalue(), said.lines


def commands(kind: Kind, teacher: Path, place: Path) -> dict[str, list[str]]:
    """Of each verb. The student that is evaluated beside its teacher is the one that was distilled, or the teacher
    itself where there is none."""
    ref, options, size = str(teacher), list(kind.options), kind.unet.get("in_channels", 3)
    data = str(make_data(place / "images.npz", size if size in (1, 3) else 3))
    training = [f"--training.{key}={value}" for key, value in TRAIN.items()]
    student = place / "run" / "student"
    return {
        "plan": ["plan", ref, *options],
        "distill": [
            "distill",
            "--teacher",
            ref,
            "--data",
            data,
            "--output_dir",
            str(place / "run"),
            *training,
            *options,
        ],
        "sample": ["sample", ref, "--output", str(place / "samples"), "--num_images", "2", "--steps", "3"],
        "evaluate": [
            *("evaluate", str(ref if "distill" in kind.refused else student), "--teacher", ref, "--data", data),
            *("--num_images", "8", "--steps", "2", "--output_dir", str(place / "report"), *EXTRACTOR),
        ],
    }


def tried(kind: Kind, place: Path) -> tuple[dict[str, bool], list[str]]:
    """Does each verb work; and the lines that are said of the teacher, each once."""
    place.mkdir(exist_ok=True)
    teacher = make_kind(kind, place / "teacher")
    works, lines = {}, []
    for verb, argv in commands(kind, teacher, place).items():
        code, printed, logged = run(argv)
        works[verb] = code is None
        about = [line for line in logged if line.startswith((f"{teacher} ", f"{teacher}:"))]
        if code is not None:
            assert code == 2, (verb, printed)
            assert printed.startswith("ddpm-redistill: error: "), (verb, printed)
            assert printed.count("\n") == 1, (verb, printed)
            about.append(printed.removeprefix("ddpm-redistill: error: ").strip())
        lines += [line for line in about if line not in lines]
    return works, [line.replace(str(teacher), "teacher") for line in lines]


def row(kind: Kind, works: dict[str, bool], lines: list[str]) -> str:
    cells = ["works" if works[verb] else "refused" for verb in VERBS]
    return f"| {kind.what} | {' | '.join(cells)} | {'<br>'.join(lines).replace('|', chr(92) + '|')} |"


def table(of: Any) -> str:
    rows = [row(kind, *of(kind)) for kind in KINDS]
    return "\n".join([HEAD, f"|{'---|' * (len(VERBS) + 2)}", *rows])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_a_kind_of_teacher(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works, lines = tried(kind, tmp_path / "place")
    assert [verb for verb in VERBS if not works[verb]] == list(kind.refused)
    assert any(kind.words in line for line in lines) if kind.words else lines == []
    assert row(kind, works, lines) in DOCS.read_text(encoding="utf-8").splitlines()


def test_the_table_has_no_other_rows() -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert rows[0] == HEAD
    assert len(rows) == len(KINDS) + 2
    assert len({kind.what for kind in KINDS}) == len(KINDS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        logging.disable(logging.NOTSET)
        text = table(lambda kind: tried(kind, Path(folder) / str(KINDS.index(kind))))
    sys.stdout.write(text + "\n")
