"""How often intervals hold the truth."""

from __future__ import annotations

import numpy as np

from fganalysis.statistics.intervals import Estimate

HELD = (0.935, 0.965)  # What every interval of the toolkit must keep within, nominally .95.


def covered(estimate: Estimate, truth: float) -> float:
    """The share of intervals that hold the truth."""
    return float(np.mean((estimate.low <= truth) & (truth <= estimate.high)))
