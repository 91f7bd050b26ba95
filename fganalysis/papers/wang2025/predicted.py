"""What theory says of the metrics of Wang et al. 2025."""

from __future__ import annotations

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import Prediction, double
from fganalysis.predictions.guess import Guess
from theory import wang2025


def theory(snapshot: Snapshot, guess: Guess) -> Prediction:
    """The metrics in closed form, (layer,), from moments, factors and directions of the guess.

    NaN where one of these is unknown, and for all layers together.
    """
    gradients, known = double(snapshot.gradients), {}
    if guess.activations is not None:
        pairs = list(zip(gradients, guess.activations, strict=True))
        known["wang2025_bias"] = [wang2025.bias(g, moments) for g, moments in pairs]
        known["wang2025_variance"] = [wang2025.variance(g, moments) for g, moments in pairs]
    if guess.factors is not None:
        known["wang2025_covariance_norm"] = [wang2025.covariance_norm(factor) for factor in guess.factors]
    if guess.directions is not None:
        # The output tap's guess is not in a span of fewer directions than units.
        overlaps = [wang2025.overlap(g, left) for g, left in zip(gradients, guess.directions, strict=False)]
        plain, squared = np.array([*overlaps, (np.nan, np.nan)]).T
        known |= {"wang2025_overlap": list(plain), "wang2025_squared_overlap": list(squared)}
    return {name: np.array([*values, np.nan]) for name, values in known.items()}
