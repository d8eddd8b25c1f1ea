"""Each class by itself: distances from a model's images of a class to the data's images of that class."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from tqdm import tqdm

from .features import Features
from .intervals import FEWEST
from .metrics import check_comparable, frechet_with_interval, kid_and_precision
from .shared_classes import SharedClasses

PAIRS = {"student_to_data": "student", "teacher_to_data": "teacher"}


def figures_by_class(classes: SharedClasses, features: Mapping[str, Features]) -> dict[str, Any]:
    """The "classes" part of a report, of sets ("student", "teacher", "data") with their features.

    A class has figures where both of its sets have ``FEWEST`` images: KID, which is unbiased at any number, with its
    interval, precision and recall; the Frechet distance only where there are more images of the class than features,
    since its bias would otherwise be most of it. Nothing is extracted again.

    Returns:
        ``by_class``, in the order of the labels: ``name``, ``num_images`` of each set, ``student_to_data`` and
        ``teacher_to_data`` as ``metrics.compare`` has them; and ``notes``, sentences on what is left out.

    Raises:
        UserError: features of different extractors.
    """
    sets = {name: features[name] for name in ("student", "teacher", "data") if name in classes.labels}
    for each in sets.values():
        check_comparable(each, sets["data"])
    rows = []
    for label, name in enumerate(tqdm(classes.names, desc="figures by class", unit="class")):
        of_class = {key: _only(each, classes.labels[key] == label) for key, each in sets.items()}
        row: dict[str, Any] = {"name": name, "num_images": {key: len(each) for key, each in of_class.items()}}
        for pair, who in PAIRS.items():
            if who in of_class and min(len(of_class[who]), len(of_class["data"])) >= FEWEST:
                row[pair] = _distances(of_class[who], of_class["data"])
        rows.append(row)
    return {"by_class": rows, "notes": _notes(rows, sets["data"])}


def _only(features: Features, chosen: Tensor) -> Features:
    return Features(features.values[chosen], None, features.extractor)


def _distances(a: Features, b: Features) -> dict[str, Any]:
    enough = min(len(a), len(b)) > a.values.shape[1]
    return (frechet_with_interval(a, b) if enough else {}) | kid_and_precision(a, b)


def _notes(rows: list[dict[str, Any]], data: Features) -> list[str]:
    without = sum(not any(pair in row for pair in PAIRS) for row in rows)
    figures = [row[pair] for row in rows for pair in PAIRS if pair in row]
    frechet, size = data.extractor.fid_name, data.values.shape[1]
    found = []
    if without:
        found.append(f"{without} of {len(rows)} classes have fewer than {FEWEST} images in a set, and no figures")
    if not all(frechet in each for each in figures):
        found.append(f"{frechet} is left out of classes that have no more images than the {size:,} features")
    return found
