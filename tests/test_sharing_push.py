"""``push``: what is sent is what was listed, a mistake is one line, and no token is ever shown."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DModel
from huggingface_hub import HfApi
from sharing_helpers import make_student
from training_helpers import UNET_WEIGHTS, refused

from ddpm_redistill.cli import main
from ddpm_redistill.pipelines.modeling_red_unet import CODE_NAME
from ddpm_redistill.sharing import push as pushing
from ddpm_redistill.sharing.push import push

TOKEN = "hf_thisIsASecret"


@pytest.fixture(scope="module")
def made(tiny_teacher: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tiny_teacher, tmp_path_factory.mktemp("made") / "student")


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(made, tmp_path / "student")
    (folder / ".git").mkdir()
    for name in (".env", ".git/config", "unet/.hidden", "unet/a.pyc"):
        (folder / name).write_text("secret")
    return folder


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A hub that only notes what it is asked for, and nobody logged in."""
    asked: list[tuple[str, dict[str, Any]]] = []
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(
            HfApi,
            name,
            lambda self, *args, _name=name, **options: asked.append((_name, {"args": args, **options})),
        )
    monkeypatch.setattr(pushing, "get_token", lambda: None)
    return asked


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_lists_and_does_nothing(student: Path, hub: list, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(student)
    main(["push", str(student), "me/mine", "--dry_run"])
    out, _ = capsys.readouterr()
    assert hub == []
    assert snapshot(student) == before
    lines = out.splitlines()
    listed = {line.split(" B  ")[1].strip(): int(line.split(" B  ")[0].replace(",", "")) for line in lines[:-1]}
    total = listed.pop("in all")
    assert listed.keys() == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/{CODE_NAME}.py",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert total == sum(listed.values())
    for name, size in listed.items():
        if name != "README.md":
            assert size == (student / name).stat().st_size
    assert lines[-1] == "nothing was sent: without --dry_run these go to me/mine"


def test_what_is_sent_is_what_was_listed(
    student: Path, hub: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = push(str(student), "me/mine", dry_run=True)
    monkeypatch.setattr(pushing, "get_token", lambda: TOKEN)
    main(["push", str(student), "me/mine", "--private"])
    (create, made), (upload, sent) = hub
    assert (create, made) == ("create_repo", {"args": ("me/mine",), "private": True, "exist_ok": True})
    assert (upload, sent["repo_id"], sent["folder_path"]) == ("upload_folder", "me/mine", student)
    taken = pushing.filter_repo_objects(
        [path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()],
        ignore_patterns=sent["ignore_patterns"],
    )
    assert {name: (student / name).stat().st_size for name in taken} == listed.files
    assert 'DiffusionPipeline.from_pretrained("me/mine", trust_remote_code=True)' in (student / "README.md").read_text()
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"{HfApi().endpoint}/me/mine"
    assert TOKEN not in out + err


def test_an_open_repository_is_nobodys_wish_or_refusal(student: Path, hub: list, monkeypatch: Any) -> None:
    """Without --private the hub's own default holds, which an organisation may have set."""
    monkeypatch.setattr(pushing, "get_token", lambda: TOKEN)
    push(str(student), "me/mine")
    assert hub[0][1]["private"] is None


# --- mistakes


@pytest.mark.parametrize(
    "name", ["mine", "a/b/c", "a b/c", "../a/b", "me/", "/me", "me/a.git", "-a/b", "a/b--c", "é/a", ""]
)
def test_a_bad_name(student: Path, hub: list, name: str, capsys: Any, caplog: Any) -> None:
    line = refused(capsys, caplog, ["push", "--", str(student), name])
    assert "is no name of a repository, owner/name" in line
    assert hub == []


def unwritten(folder: Path) -> None:
    (folder / "unet" / f"{CODE_NAME}.py").unlink()


def edited(folder: Path) -> None:
    with (folder / "unet" / f"{CODE_NAME}.py").open("a") as file:
        file.write("import os\n")


def damaged(folder: Path) -> None:
    (folder / UNET_WEIGHTS).write_bytes((folder / UNET_WEIGHTS).read_bytes()[:-9])


def without_weights(folder: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()


def linked(folder: Path) -> None:
    private = folder.parent / "private.txt"
    private.write_text("mine")
    (folder / "notes.txt").symlink_to(private)


def without_plan(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"student_plan": {', '"x": {'))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unwritten, "does not carry its code, so that it opens nowhere else: write it again"),
        (edited, "was changed after it was written"),
        (damaged, "cannot be loaded"),
        (without_weights, "has no weights"),
        (linked, "is a link out of the folder"),
        (without_plan, "is no student: it has no plan"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_is_no_whole_student(student, hub, spoil, words, capsys, caplog) -> None:
    spoil(student)
    for more in ([], ["--dry_run"]):
        assert words in refused(capsys, caplog, ["push", str(student), "me/mine", *more])
    assert not (student / "README.md").exists()
    assert hub == []


def test_what_is_no_student(teacher_folder: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    for model, words in (
        (str(teacher_folder), "is no student: it has no plan"),
        ("builtin:digits", "there is no folder builtin:digits"),
        ("google/ddpm-cifar10-32", "there is no folder google/ddpm-cifar10-32"),
        (str(tmp_path), "is no diffusers model"),
    ):
        assert words in refused(capsys, caplog, ["push", model, "me/mine"])


def test_a_missing_report(student: Path, capsys: Any, caplog: Any) -> None:
    line = refused(capsys, caplog, ["push", str(student), "me/mine", "--report", str(student / "no.json")])
    assert "no.json cannot be read as JSON" in line


def test_nobody_is_logged_in(student: Path, hub: list, capsys: Any) -> None:
    before = snapshot(student)
    with pytest.raises(SystemExit) as ended:
        main(["push", str(student), "me/mine"])
    assert ended.value.code == 2
    assert "no token of the hub is known here: run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert hub == []
    assert snapshot(student) == before


def test_the_hub_says_no(student: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any) -> None:
    def forbidden(self: HfApi, *args: Any, **options: Any) -> None:
        raise OSError(f"403 Forbidden for {TOKEN}\nmore")

    monkeypatch.setattr(pushing, "get_token", lambda: TOKEN)
    monkeypatch.setattr(HfApi, "create_repo", forbidden)
    with pytest.raises(SystemExit) as ended:
        main(["push", str(student), "me/mine"])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.splitlines()[-1].endswith("the hub did not take " + f"{student} as me/mine: 403 Forbidden for ... more")
    assert TOKEN not in out + err + caplog.text
