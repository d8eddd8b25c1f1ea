"""A vision transformer through the verbs, as the student of a convolutional teacher: trained, measured, given away."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from classifier_runs import SIZE, distill_argv, make_labelled

from ddpm_redistill import load_classifier
from ddpm_redistill.cli import main
from ddpm_redistill.export.torch_export import call_torch_export
from ddpm_redistill.families.classifier_files import build, find_config, save_classifier

pytest.importorskip("timm")

CLASSES = 8


def test_distilled_measured_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = find_config("wrn:10-1", image_size=SIZE, in_channels=1, num_classes=CLASSES)
    save_classifier(build(config), config, tmp_path / "teacher")
    data, student = make_labelled(tmp_path / "data.npz", 24, classes=CLASSES), tmp_path / "run" / "student"
    shape = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    options: dict[str, Any] = {"architecture": "timm:vit_tiny_patch16_224", "arguments": shape}
    held_out = {"held_out": 0.25}
    argv = distill_argv(tmp_path / "teacher", data, tmp_path / "run", student=options, classification=held_out)
    main([*argv, "--training.steps", "2"])
    AcceleratorState._reset_state(reset_partial_state=True)
    capsys.readouterr()

    main(["evaluate", str(student), "--teacher", str(tmp_path / "teacher"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["accuracy"]["num_images"], report["accuracy"]["held_out"]) == (6, True)
    assert set(report["accuracy"]["networks"]) == {"teacher", "student"}
    memory = report["memory"]["student"]
    assert memory["tensor_peak"] > memory["red_paper_peak"] > 0
    assert memory["paper_peak"] is None
    assert "tensor_peak_lean" not in memory
    card = (student / "README.md").read_text()
    assert "| arguments of its architecture | patch\\_size 4, embed\\_dim 12, depth 2, num\\_heads 3 |" in card
    assert "| plan: RED blocks | full: 1 block, norm batch, start identity |" in card
    main(["push", str(student), "me/mine", "--dry_run"])
    assert "nothing was sent" in capsys.readouterr().out

    main(["export", str(student), "--format", "torch_export", "--output", str(tmp_path / "a.pt2")])
    images = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_classifier(str(student))[0](images)
    torch.testing.assert_close(call_torch_export(tmp_path / "a.pt2")(images), expected, rtol=1e-4, atol=1e-5)
