"""What a .pte tells of its planned memory, and what ``memory`` makes of it; ExecuTorch is for the last test alone."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from diffusers import DDPMScheduler
from export_helpers import make_student
from training_helpers import refused

from ddpm_redistill import UserError, export_model
from ddpm_redistill.cli import main
from ddpm_redistill.export.program_file import open_program

MIB = 2**20
ARENA = 3 * MIB // 4
TOLD = {"format": 1, "batch_size": 1, "network": {"sample_size": 16}, "scheduler": DDPMScheduler().config}
TEXT_KIND = 6


def table(builder: flatbuffers.Builder, fields: dict[int, Any]) -> int:
    """A table of offsets by field number; ``(width, value)`` is a number in its place."""
    builder.StartObject(max(fields) + 1)
    for number, value in fields.items():
        if isinstance(value, tuple):
            builder.PrependUint8Slot(number, value[1], 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
    return builder.EndObject()


def offsets(builder: flatbuffers.Builder, places: list[int]) -> int:
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return builder.EndVector()


def sizes(builder: flatbuffers.Builder, values: list[int]) -> int:
    builder.StartVector(8, len(values), 8)
    for value in reversed(values):
        builder.PrependInt64(value)
    return builder.EndVector()


def program(told: Any = TOLD, arena: list[int] | None = None, second: str = "ddpm_redistill") -> bytes:
    """A .pte as program.fbs has it, with all that is read of one, and 1,000 bytes of weights."""
    builder = flatbuffers.Builder()
    text = table(builder, {0: builder.CreateString(told if isinstance(told, str) else json.dumps(told, default=dict))})
    value = table(builder, {0: (1, TEXT_KIND), 1: text})
    methods = [
        {0: builder.CreateString("forward"), 2: offsets(builder, []), 8: sizes(builder, arena or [0, ARENA])},
        {0: builder.CreateString(second), 2: offsets(builder, [value]), 8: sizes(builder, [0])},
    ]
    root = table(builder, {1: offsets(builder, [table(builder, fields) for fields in methods])})
    builder.Finish(root, file_identifier=b"ET12")
    plain = bytes(builder.Output())
    header = b"eh00" + (32).to_bytes(4, "little")
    header += b"".join(n.to_bytes(8, "little") for n in (len(plain) + 32, len(plain) + 32, 1000))
    moved = int.from_bytes(plain[:4], "little") + len(header)  # the header goes between the identifier and the tables
    return moved.to_bytes(4, "little") + plain[4:8] + header + plain[8:] + bytes(1000)


def write(path: Path, **of: Any) -> str:
    path.write_bytes(program(**of))
    return str(path)


def test_the_arena_is_read_from_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pte")
    found = open_program(path)
    assert found.memory == {"planned_arena": ARENA, "file": Path(path).stat().st_size}
    assert (found.batch_size, found.image_size) == (1, 16)
    several = write(tmp_path / "b.pte", arena=[7, 100, 30])  # a memory hierarchy; the first is no buffer
    assert open_program(several).memory["planned_arena"] == 130


def test_table_json_and_limit(tmp_path: Path, capsys) -> None:
    model, teacher = write(tmp_path / "a.PTE"), write(tmp_path / "b.pte", arena=[0, 4 * ARENA])
    main(["memory", model, "--teacher", teacher, "--fail_over", str(ARENA)])  # as much is not over
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["memory,", "MiB", "teacher", "model", "ratio"]
    assert lines[1] == ["planned_arena", "3.0000", "0.7500", "4.00x"]
    assert [line[0] for line in lines[2:]] == ["file"]
    with pytest.raises(SystemExit) as ended:
        main(["memory", model, "--teacher", teacher, "--json", "--fail_over", f"{ARENA - 1024}B"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert (
        err == f"ddpm-redistill: planned_arena of {model} is 0.7500 MiB ({ARENA} B): 0.0010 MiB over {ARENA - 1024}B\n"
    )
    found = json.loads(out)
    assert found["memory"]["planned_arena"] * 4 == found["teacher_memory"]["planned_arena"]
    assert (found["batch_size"], found["image_size"], found["dtype"]) == (1, 16, "float32")


MISTAKES = [
    (["{a}", "--image_size", "64"], "--image_size is for networks: the memory of {a} was planned when"),
    (["{a}", "--batch_size", "2"], "--batch_size is for networks"),
    (["{a}", "--dtype", "float16"], "--dtype is for networks"),
    (["{a}", "--lean", "smallest"], "--lean is for networks"),
    (["{a}", "--timeline", "{new}"], "--timeline is for networks"),
    (["{a}", "--teacher", "builtin:digits"], "{a} is a program and the other is not"),
    (["builtin:digits", "--teacher", "{a}"], "{a} is a program and the other is not"),
    (["{a}", "--teacher", "{four}"], "of 4 and 1 images a call: export both with the same --batch_size"),
    (["{a}", "--fail_over", "much"], "'much' is not a size"),
    (["{new}.pte"], "there is no file {new}.pte"),
]


@pytest.mark.parametrize(("argv", "words"), MISTAKES)
def test_mistakes(tmp_path: Path, capsys, caplog, argv: list[str], words: str) -> None:
    four = write(tmp_path / "four.pte", told={**TOLD, "batch_size": 4})
    names = {"a": write(tmp_path / "a.pte"), "four": four, "new": str(tmp_path / "new")}
    assert words.format(**names) in refused(capsys, caplog, ["memory", *(part.format(**names) for part in argv)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pte", "four.pte"]


WRONG = [
    ({"told": {**TOLD, "format": 2}}, "format 2 is not 1"),
    ({"told": "{"}, "Expecting"),
    ({"told": "[" * 100_000}, "recursion"),
    ({"told": []}, "list indices"),
    ({"told": {**TOLD, "network": {}}}, "'sample_size'"),
    ({"second": "other"}, "its methods are forward, other"),
]


@pytest.mark.parametrize(("of", "words"), WRONG)
def test_another_program(tmp_path: Path, of: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "a.pte", **of)
    with pytest.raises(UserError, match="is no whole ExecuTorch program that `export` wrote: ") as caught:
        open_program(path)
    assert words in str(caught.value)


def test_a_program_that_is_cut_or_damaged(tmp_path: Path) -> None:
    path, good = tmp_path / "a.pte", program()
    for length in [*range(0, len(good), 7), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match="is no whole ExecuTorch program"):
            open_program(str(path))
    generator, read = random.Random(0), 0
    for _ in range(500):
        damaged = bytearray(good)
        for _ in range(3):
            damaged[generator.randrange(len(good) - 1000)] = generator.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read += open_program(str(path)).memory["file"] == len(good)
    assert 0 < read < 500


def test_what_executorch_plans_is_what_is_read(tmp_path: Path, caplog, capsys) -> None:
    pytest.importorskip("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary

    caplog.set_level("INFO", logger="ddpm_redistill")
    student = make_student(tmp_path / "student")
    path = export_model(str(student), tmp_path / "a.pte", format="executorch", batch_size=2)
    plans = deserialize_pte_binary(path.read_bytes()).program.execution_plan
    planned = {plan.name: plan.non_const_buffer_sizes for plan in plans}
    found = open_program(str(path))
    assert found.memory == {"planned_arena": sum(planned["forward"]), "file": path.stat().st_size}
    assert (found.batch_size, found.image_size) == (2, 16)
    assert f"planned arena: {found.memory['planned_arena']:,} bytes" in caplog.text
