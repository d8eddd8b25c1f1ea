"""What a card says of a student's classes: their names by label, the null class, and guidance."""

from collections.abc import Iterator

from ..pipelines.conditioning import Conditioning
from .markdown import number, text

MOST_NAMES = 20
"""Of classes that are all named; of more the first ones and the last."""
LONGEST_NAME = 60
"""Characters of a name that are shown."""


def condition(classes: Conditioning | None) -> str:
    """What its images are sampled on, as the end of a sentence."""
    if classes is None:
        return "without a condition"
    count = classes.num_classes
    return f"of {number(count)} class{'' if count == 1 else 'es'}, by label"


def facts_of_classes(classes: Conditioning | None) -> Iterator[list[str]]:
    """Rows of the card's table, as Markdown; none without classes."""
    if classes is None:
        return
    yield ["classes, by label", names_by_label(classes)]
    null = "none" if classes.null is None else f"label {classes.null}"
    yield ["null class, which stands for no class", null]
    yield ["classifier-free guidance", guidance(classes)]


def names_by_label(classes: Conditioning) -> str:
    """``0: cat; 1: dog``, shortened where there are many; of names that are the labels themselves the range."""
    if classes.names == tuple(str(label) for label in range(classes.num_classes)):
        return f"0 to {classes.num_classes - 1}, which have no other names"
    named = [f"{label}: {text(shortened(name))}" for label, name in enumerate(classes.names)]
    if len(named) > MOST_NAMES:
        named = [*named[: MOST_NAMES - 1], "...", named[-1]]
    return "; ".join(named)


def shortened(name: str) -> str:
    name = name.encode(errors="replace").decode()  # names of folders may hold bytes that are no UTF-8
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def guidance(classes: Conditioning) -> str:
    """What a person can ask of it."""
    if classes.learned_guidance is not None:
        learned = number(classes.learned_guidance)
        return f"has learned its teacher's of scale {learned}: one pass of the network a step, and no other scale"
    if classes.null is None:
        return "not possible without a null class"
    return "of any scale, by a second pass of the network with the null class"
