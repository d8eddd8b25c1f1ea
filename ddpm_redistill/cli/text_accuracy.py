"""What ``evaluate`` shows of a classifier, as text."""

from collections.abc import Iterator
from typing import Any


def accuracy_lines(report: dict[str, Any]) -> Iterator[str]:
    """Accuracies with their 95% intervals, the teacher's first, agreement, speed, and what a reader must know."""
    accuracy, speed = report["accuracy"], report["speed"]
    what = "images that the model's run has held out" if accuracy["held_out"] else "images"
    yield f"accuracy on {accuracy['num_images']:,} {what}, {len(accuracy['classes'])} classes"
    for name in ("teacher", "student"):
        if name in accuracy["networks"]:
            figures = accuracy["networks"][name]
            shares = "  ".join(_share(figures, key) for key in ("top1", "top5") if key in figures)
            rate = speed[name]
            yield f"  {name:<12}{shares}  {rate['images_per_second']:,.0f} images/s at batch {rate['batch_size']}"
    for pair in accuracy["agreements"]:
        yield f"  {' and '.join(sorted(pair['pair'], reverse=True))}: the same class first, {_share(pair, 'agreement')}"
    yield from (f"note: {warning}" for warning in accuracy["warnings"])


def _share(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_interval"]
    return f"{name} {figures[name]:.2%} [{low:.2%}, {high:.2%}]"
