"""For test suites: exact expectations by enumeration, and assertions about your own estimator.

`assert_unbiased` and `assert_moments_match` sample; `exact_moments` enumerates every value that the noise can take,
with no sampling at all; `parametrize_with_checks` makes a test of each of many small checks of an estimator;
`strategies` (which needs hypothesis) draws networks, batches, noise laws and estimators.
"""

from __future__ import annotations

import importlib
from typing import Any

from fganalysis.assertions.enumeration import Enumeration, ExactMoments, exact_moments, signs, three_points
from fganalysis.assertions.estimator_checks import parametrize_with_checks
from fganalysis.assertions.moments import assert_moments_match
from fganalysis.assertions.unbiased import assert_unbiased, check_unbiased

__all__ = [
    "Enumeration",
    "ExactMoments",
    "assert_moments_match",
    "assert_unbiased",
    "check_unbiased",
    "exact_moments",
    "parametrize_with_checks",
    "signs",
    "three_points",
]


def __getattr__(name: str) -> Any:
    """`strategies` is imported when it is asked for: hypothesis is no dependency of measuring."""
    if name == "strategies":
        return importlib.import_module("fganalysis.assertions.strategies")
    raise AttributeError(f"module 'fganalysis.testing' has no attribute {name!r}")
