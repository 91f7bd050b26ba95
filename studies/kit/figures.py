"""The style of the figures that studies draw: one colour and one marker an estimator, whatever the study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Places in seaborn's palette for colour-blind readers, and markers, by the estimator's key. Estimators that share a
# place are variants that no figure shows side by side.
PLACES = {
    "weight": 0,
    "finite_difference": 0,
    "activity": 1,
    "upstream": 2,
    "orthogonal": 3,
    "newton_schulz": 5,
    "preconditioned": 6,
    "backpropagation": 4,
    "feedback_alignment": 7,
    "direct_feedback": 8,
    "forward_direct_feedback": 9,
}
MARKERS = {"weight": "o", "activity": "s", "upstream": "^", "orthogonal": "D", "backpropagation": "v"}


def colour(estimator: str) -> Any:
    """The colour of an estimator, by its key; settings behind a comma (``orthogonal, k = 10``) change nothing."""
    import seaborn

    return seaborn.color_palette("colorblind")[PLACES[_key(estimator)]]


def marker(estimator: str) -> str:
    """The marker of an estimator, by its key."""
    return MARKERS.get(_key(estimator), "P")


@contextmanager
def style() -> Iterator[None]:
    """The grid and the sizes of letters and lines of every study's figures."""
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        yield


def _key(estimator: str) -> str:
    return estimator.split(",")[0]
