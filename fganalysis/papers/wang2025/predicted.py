"""What theory says of the metrics of Wang et al. 2025."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import Prediction, double
from fganalysis.predictions.guess import Guess
from theory import wang2025


def theory(snapshot: Snapshot, guess: Guess) -> Prediction:
    """The metrics in closed form, (layer,), from moments, factors and directions of the guess.

    NaN where one of these is unknown, for all layers together, and for a layer that is not one tap with a row an
    example, which the paper has.
    """
    gradients, known = double(snapshot.gradients), {}
    activations, factors, directions = guess.activations, guess.factors, guess.directions

    def over_layers(of_tap: Callable[[int], float]) -> np.ndarray:
        values = np.full(len(snapshot.weights) + 1, np.nan)
        for index, layer in enumerate(snapshot.weights):
            owners = snapshot.taps[layer.taps[0]].owners if len(layer.taps) == 1 else None
            if owners is not None and owners.is_plain and not snapshot.interaction:
                values[index] = of_tap(layer.taps[0])
        return values

    if activations is not None:
        known["wang2025_bias"] = over_layers(lambda tap: wang2025.bias(gradients[tap], activations[tap]))
        known["wang2025_variance"] = over_layers(lambda tap: wang2025.variance(gradients[tap], activations[tap]))
    if factors is not None:
        known["wang2025_covariance_norm"] = over_layers(lambda tap: wang2025.covariance_norm(factors[tap]))
    if directions is not None:
        # The output tap's guess is not in a span of fewer directions than units.
        def overlap(tap: int, which: int) -> float:
            of_tap = directions[tap]
            return np.nan if of_tap is None else wang2025.overlap(gradients[tap], of_tap)[which]

        known["wang2025_overlap"] = over_layers(lambda tap: overlap(tap, 0))
        known["wang2025_squared_overlap"] = over_layers(lambda tap: overlap(tap, 1))
    return known
