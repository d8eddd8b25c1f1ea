"""The card of a student that has just been trained or evaluated, of whatever family it is."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..families.registry import find_family
from .card import CARD, write_card
from .classifier_card import write_classifier_card

log = logging.getLogger("ddpm_redistill")

WRITE: dict[str, Callable[..., Any]] = {"denoise": write_card, "classify": write_classifier_card}
"""By task."""


def renew_card(ref: str, *, output_dir: Path, measured: bool) -> None:
    """The card of a student whose run has just been trained or evaluated, ``output_dir``; nothing for any other model.

    What was done stands whether or not its card can be written: then there is a warning in place of an error.
    """
    folder = Path(ref).expanduser()
    if not folder.is_dir() or folder.resolve().parent != output_dir.resolve():
        return
    try:
        family = find_family(ref)[1]
        if family.is_student(family.find(ref).config):
            WRITE[family.TASK](ref, measured=measured)
            log.info("model card written to %s", folder / CARD)
    except (UserError, OSError) as error:
        log.warning("no model card was written: %s", error)
