"""The number k of upstream directions that makes the orthogonal upstream guess most efficient, from energy curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from theory.energy_curves import Counts, Output, OverlapCurve
from theory.subspace import Layers, Quantities, activation_quantities, orthogonal_terms


def best_setting(quantities: Quantities) -> Counts:
    """The index of the setting with the highest efficiency, (layer,), with all layers together last.

    It is the first such index, and −1 for a layer without a gradient. The best k is ``ks[best_setting(…)]``. The output
    tap has no k, but in a joint pass the k of the hidden layers determine the noise of its guess.
    """
    efficiency = np.where(np.isnan(quantities.efficiency), -np.inf, quantities.efficiency)
    return np.where(np.isneginf(efficiency).all(1), -1, np.argmax(efficiency, axis=1))


def best_k_of_each_layer(curves: Sequence[OverlapCurve], output: Output, layers: Layers = "joint") -> Counts:
    """A k for each hidden layer, (layer,), for a high efficiency of all layers together in activation space.

    Coordinate ascent from the best common k: the k of a single layer is changed until no change helps. The result is
    never worse than the best common k, but there may be a better combination. Raises ValueError if all gradients are
    zero.
    """
    tops = np.array([max(min(int(curve.rank.max()), curve.overlap.shape[1]), 1) for curve in curves])
    common = np.minimum(np.arange(1, tops.max() + 1)[:, None], tops)
    first = best_setting(activation_quantities(orthogonal_terms(curves, output, common), layers))[-1]
    if first < 0:
        raise ValueError("there is no best k: every gradient is zero")
    chosen, efficiency = common[first], -np.inf
    while True:
        before = efficiency
        for layer, top in enumerate(tops):
            tried = np.repeat(chosen[None], top, axis=0)
            tried[:, layer] = np.arange(1, top + 1)
            quantities = activation_quantities(orthogonal_terms(curves, output, tried), layers)
            best = best_setting(quantities)[-1]
            if quantities.efficiency[-1, best] > efficiency:
                chosen, efficiency = tried[best], quantities.efficiency[-1, best]
        if efficiency == before:
            return chosen
