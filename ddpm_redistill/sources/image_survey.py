"""What the images of a source are like before they are made alike, in a line for people and in warnings."""

import logging
from dataclasses import dataclass, field

from .image_values import COLOUR, EIGHT, FLOAT, FULL_RANGE, Values

log = logging.getLogger("ddpm_redistill")

DARK = 4  # a source whose largest value is less than one in so many of its range is warned of


@dataclass
class Survey:
    """Of all images of a source that were decoded."""

    name: str
    image_size: int
    sizes: set[tuple[int, int]] = field(default_factory=set)  # (width, height)
    values: dict[str, Values] = field(default_factory=dict)  # by their kind
    small: int = 0  # images whose shorter side is less than half of image_size
    several: int = 0  # images of more than one frame

    def add(self, size: tuple[int, int], values: Values, animated: bool = False, count: int = 1) -> None:
        """`count` images alike."""
        before = self.values.get(values.kind, values)
        least, most = min(before.least, values.least), max(before.most, values.most)
        self.values[values.kind] = values._replace(least=least, most=most)
        self.sizes.add(size)
        self.small += count * (2 * min(size) < self.image_size)
        self.several += count * animated

    def describe(self, n: int, channels: int) -> str:
        """One line; sizes are (width, height), named from the smallest to the largest area; values where they are not
        8-bit ones of 0 to 255."""
        target = f"{self.image_size}x{self.image_size}"
        ordered = [f"{w}x{h}" for w, h in sorted(self.sizes, key=lambda size: (size[0] * size[1], size))]
        shown = ordered[0] if len(ordered) == 1 else f"sizes {ordered[0]} to {ordered[-1]}"
        shown = shown if shown == target else f"{shown} resized to {target}"
        ranges = "".join(
            f", {kind} values of {number(found.least)} to {number(found.most)} in a range of {number(found.full)}"
            for kind, found in sorted(self.values.items())
            if (kind, found.full) != (EIGHT, FULL_RANGE[EIGHT])
        )
        images = "image" if n == 1 else "images"
        return f"{n:,} {images} from {self.name}, {shown}, {channels} channel{'' if channels == 1 else 's'}{ranges}"

    def warn(self, n: int) -> None:
        """Says, a line each, what may make other images of these `n` than a person expects."""
        for kind, found in sorted(self.values.items()):
            if found.most * DARK < found.full:
                log.warning(
                    "%s: its %s values end at %s, less than a quarter of their range of %s, so that the images are"
                    " dark; %s", self.name, kind, number(found.most), number(found.full), self._advice(found),
                )  # fmt: skip
        if self.several:
            log.warning(
                "%s: %s of %s images have more than one frame: the first is taken",
                self.name, number(self.several), number(n),
            )  # fmt: skip
        if self.small:
            width, height = min(self.sizes, key=lambda size: (min(size), size))
            log.warning(
                "%s: %s of %s images are less than half as large as image_size %d, the smallest %dx%d: enlarged they"
                " are blurred; leave them out, or give a smaller image_size",
                self.name, number(self.small), number(n), self.image_size, width, height,
            )  # fmt: skip

    def _advice(self, found: Values) -> str:
        if found.kind == COLOUR:
            return "save them as 8 bit with their values spread, since of 16-bit colour the upper byte is read"
        if len(self.values) > 1:
            return "save all images with one kind of values, then data_range says which value becomes white"
        if not found.most:
            return "look at them"
        white = repr(found.most) if found.kind == FLOAT else 2 ** int(found.most).bit_length() - 1
        return f"--data_range {white} makes that value white"


def number(value: float) -> str:
    """4,095; 0.25."""
    return f"{int(value):,}" if value == int(value) else f"{value:.6g}"
