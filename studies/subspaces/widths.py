"""Answer (c) of `studies.subspaces`: does the method improve with width, and is it by overlap, rank or noise?

Every number and every verdict is read from the collected Dataset. A slope is taken seed by seed, over log₂ of the
width; a verdict says that something rises, falls, helps or hurts only where its 95 % interval leaves zero out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import schema
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import STATES, all_widths, hidden_layers

GUESSES = {
    "W̃⊥, weights": ("orthogonal_efficiency", "weight"),
    "W̃⊥, activations": ("orthogonal_efficiency", "activation"),
    "W̃ᵀ, activations": ("upstream_efficiency", "activation"),
    "activity perturbation, activations": ("activity_efficiency", "activation"),
}
ACTIVATION_PARTS = ("overlap", "cross-layer noise")
WEIGHT_PARTS = ("overlap", "agreement of the examples", "noise")


def widths_compared(collected: xr.Dataset, k: int) -> dict[str, object]:
    """What answer (c) says: the names of the template widths.md.j2."""
    layers = hidden_layers(collected)[:-1]
    states = {method: collected.sel(trained_by=method, moment="common") for method in STATES}
    net = {method: state.sel(layer=schema.ALL_LAYERS) for method, state in states.items()}
    at_activations = {
        method: {layer: _activation_parts(state.sel(layer=layer), k) for layer in layers}
        for method, state in states.items()
    }
    at_weights = {
        method: {layer: _weight_parts(state.sel(layer=layer)) for layer in [*layers, schema.ALL_LAYERS]}
        for method, state in states.items()
    }
    learned = _learned(collected)
    return {
        "steps": float(collected["training_step"].sel(moment="common").max()),
        "learned": {name: over_seeds(_slopes(quantity)) for name, quantity in learned.items()},
        "by_width": [
            [str(width), *(str(over_seeds(quantity.sel(width=width))) for quantity in learned.values())]
            for width in all_widths(collected)
        ],
        "leads": [
            (NAMES[method], _slope((own["orthogonal_efficiency"] / own["activity_efficiency"]).sel(space="activation")))
            for method, own in net.items()
        ],
        "effects": [
            {
                "state": NAMES[method],
                "activations": [
                    (part, [(layer, slopes[index]) for layer, slopes in at_activations[method].items()])
                    for index, part in enumerate(ACTIVATION_PARTS)
                ],
                "weights": list(zip(WEIGHT_PARTS, at_weights[method][schema.ALL_LAYERS], strict=False)),
                "efficiency": at_weights[method][schema.ALL_LAYERS][-1],
            }
            for method in STATES
        ],
        "guesses": list(GUESSES),
        "slopes": [
            [NAMES[method], *(str(_slope(own[name].sel(space=space))) for name, space in GUESSES.values())]
            for method, own in net.items()
        ],
        "at_activations": _rows(at_activations),
        "at_weights": _rows(at_weights),
    }


def _learned(collected: xr.Dataset) -> dict[str, xr.DataArray]:
    """What W̃⊥ has learned at the common step, (width, seed)."""
    common = collected.sel(moment="common")
    accuracy, fall = common["train_accuracy"], common["initial_loss"] - common["loss"]
    found = {}
    for name, quantity in (("training accuracy", accuracy), ("loss reduction", fall)):
        own, other = (quantity.sel(trained_by=method, drop=True) for method in ("orthogonal", "backpropagation"))
        found[f"the {name} of W̃⊥"] = own
        found[f"the {name} of W̃⊥ relative to that of backpropagation"] = own / other
    return found


def _activation_parts(own: xr.Dataset, k: int) -> list[Interval]:
    """Slopes of a layer's overlap, of its noise factor and of their product, the efficiency."""
    efficiency = own["orthogonal_efficiency"].sel(space="activation")
    return [_slope(one) for one in (own["kept_energy"], 1 / (k * own["cross_layer"] + 2), efficiency)]


def _weight_parts(own: xr.Dataset) -> list[Interval]:
    """Slopes of overlap, of agreement, of the noise factor that is left, and of their product, the efficiency."""
    efficiency = own["orthogonal_efficiency"].sel(space="weight")
    overlap, agreement = own["weight_overlap"], own["agreement"]
    return [_slope(one) for one in (overlap, agreement, efficiency / (overlap * agreement), efficiency)]


def _rows(parts: Mapping[str, Mapping[str, list[Interval]]]) -> list[list[str]]:
    return [
        [f"{NAMES[method]}, {'net' if layer == schema.ALL_LAYERS else f'layer {layer}'}", *map(str, found)]
        for method, by_layer in parts.items()
        for layer, found in by_layer.items()
    ]


def _slopes(quantity: xr.DataArray) -> NDArray[np.float64]:
    """Over log₂ of the width, a least-squares line a seed."""
    return np.polyfit(np.log2(quantity["width"].values), quantity.transpose("width", "seed").values, 1)[0]


def _slope(quantity: xr.DataArray) -> Interval:
    """Of log₂ of a quantity over log₂ of the width."""
    return over_seeds(_slopes(quantity.copy(data=np.log2(quantity.values))))
