"""What the property tests share: how many examples, and values of any kind that JSON or YAML can hold.

The examples are the same every time, and few. ``HYPOTHESIS_PROFILE=thorough pytest tests/test_properties.py
tests/test_fuzz.py`` draws new ones, fifty times as many.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def examples(count: int) -> Callable[[Any], Any]:
    """A decorator: so many examples, fifty times as many in the thorough profile."""
    return settings(
        max_examples=count * (50 if THOROUGH else 1),
        derandomize=not THOROUGH,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),  # fixtures are only read, and a network is slow to make
    )


numbers = (
    st.integers(-3, 3)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, -1, 1e309, 1e-320, 2**31, 2**63, 10**30, float("nan")])
)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON can hold."""


def assert_one_line(error: BaseException) -> None:
    """What a UserError says must be a line with words in it."""
    assert str(error).strip()
    assert "\n" not in str(error)
