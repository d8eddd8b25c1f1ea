"""One run at a time in a folder, whoever asks, and no lock of a process that is gone."""

import os
import re
import signal
import socket
import time

import pytest
from training_helpers import arguments, distill_config, refused

from ddpm_redistill.errors import UserError
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.run_lock import check_unlocked, locked

WHO = rf"is in use by process {os.getpid()} on {re.escape(socket.gethostname())} since \d{{4}}-.* UTC: wait for it"


def test_a_second_run_is_refused_and_told_who_is_there(inputs, tmp_path, capsys, caplog):
    run = tmp_path / "run"
    with locked(run):
        with pytest.raises(UserError, match=WHO):
            distill(distill_config(inputs, run))
        for resume in ([], ["--resume"], ["--dry_run"]):
            argv = ["distill", *arguments({**inputs, "output_dir": str(run)}), *resume]
            assert re.search(WHO, refused(capsys, caplog, argv))
        assert [path.name for path in run.iterdir()] == [".lock"]
    distill(distill_config(inputs, run, steps=1))
    check_unlocked(run)


def test_a_run_that_begins_meanwhile_is_seen(inputs, tmp_path, monkeypatch):
    """Both have looked at the folder before either has it."""
    run = tmp_path / "run"
    monkeypatch.setattr("ddpm_redistill.training.run_folder.check_unlocked", lambda folder: None)
    with locked(run), pytest.raises(UserError, match=WHO):
        distill(distill_config(inputs, run))
    (run / "config.yaml").write_text("seed: 0")  # or that one has even ended
    monkeypatch.setattr("ddpm_redistill.training.run_folder.RunFolder.check_place", lambda *args, **options: None)
    with pytest.raises(UserError, match="already holds a run"):
        distill(distill_config(inputs, run))


def test_the_lock_of_a_killed_process_is_none_even_while_its_children_live(tmp_path):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            if os.fork() == 0:  # as a loader's worker
                os.write(told, str(os.getpid()).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(ready, 100))
    try:
        with pytest.raises(UserError, match=f"in use by process {child} on"):
            check_unlocked(tmp_path)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.kill(worker, 0)  # alive
        with locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_holder_that_has_not_said_who_it_is(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(UserError, match="in use by another run: wait"), locked(tmp_path):
            pass
