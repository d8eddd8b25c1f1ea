"""What ``export`` needs of a model, whatever family it is of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram

from .verify import Call


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A model that was opened and checked.

    Args:
        description: what travels with the file (``description.py``).
        output: the name of what the network gives.
        trace: makes the graph of the network. Raises UserError where it cannot.
        error_of: of a call of the file, its largest relative difference from the network; NaN where it is not finite.
        feeds: inputs of the file for calibration, batch by batch; None without images.
    """

    description: dict[str, Any]
    output: str
    trace: Callable[[], ExportedProgram]
    error_of: Callable[[Call], float]
    feeds: Callable[[], Iterator[dict[str, Any]]] | None
