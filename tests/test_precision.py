"""Two runs in one process: accelerate keeps the precision of the first."""

from pathlib import Path

import pytest
from training_helpers import distill_config, metrics

from ddpm_redistill import distill
from ddpm_redistill.errors import UserError


def test_a_second_precision_in_one_process_is_refused(inputs: dict[str, str], tmp_path: Path) -> None:
    distill(distill_config(inputs, tmp_path / "float32", steps=1))
    with pytest.raises(UserError, match="mixed_precision is bf16, and this process has trained with no: "):
        distill(distill_config(inputs, tmp_path / "bf16", steps=1, mixed_precision="bf16"))
    assert not (tmp_path / "bf16").exists()
    distill(distill_config(inputs, tmp_path / "again", steps=1))
    assert metrics(tmp_path / "again") == metrics(tmp_path / "float32")
