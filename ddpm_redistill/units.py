"""Sizes in bytes, as people write them."""

import re

from .errors import UserError

MIB = 2**20
UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": MIB, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """``"1MiB"``, ``"1.5 GiB"``, ``"500kB"`` or ``"4096"`` -> bytes, rounded down.

    Raises:
        UserError: no such size, or one below one byte.
    """
    match = SIZE.fullmatch(text.strip())
    if not match or match[2].upper() not in UNITS:
        raise UserError(f"{text!r} is not a size: write a number and a unit, as 1MiB, 512KiB, 1.5GiB or 4096 (bytes)")
    size = int(float(match[1]) * UNITS[match[2].upper()])
    if size < 1:
        raise UserError(f"{text!r} is below one byte")
    return size
