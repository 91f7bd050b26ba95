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
from studies.kit.markdown import listed, table, verb
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import STATES, Answer, all_widths, hidden_layers

TREND = ("rises", "falls", "is not told apart from staying")
HELP = ("helps", "hurts", "cannot be told")
GUESSES = {
    "W̃⊥, weights": ("orthogonal_efficiency", "weight"),
    "W̃⊥, activations": ("orthogonal_efficiency", "activation"),
    "W̃ᵀ, activations": ("upstream_efficiency", "activation"),
    "activity perturbation, activations": ("activity_efficiency", "activation"),
}
ACTIVATION_PARTS = ("overlap", "cross-layer noise")
WEIGHT_PARTS = ("overlap", "agreement of the examples", "noise")


def widths_compared(collected: xr.Dataset, k: int) -> Answer:
    layers = hidden_layers(collected)[:-1]
    own = {method: collected.sel(trained_by=method, moment="common") for method in STATES}
    net = {method: one.sel(layer=schema.ALL_LAYERS) for method, one in own.items()}
    slopes = {
        method: [_slope(one[name].sel(space=space)) for name, space in GUESSES.values()] for method, one in net.items()
    }
    leads = {
        method: _slope((one["orthogonal_efficiency"] / one["activity_efficiency"]).sel(space="activation"))
        for method, one in net.items()
    }
    at_activations = {
        m: {layer: _activation_parts(one.sel(layer=layer), k) for layer in layers} for m, one in own.items()
    }
    at_weights = {
        method: {layer: _weight_parts(one.sel(layer=layer)) for layer in [*layers, schema.ALL_LAYERS]}
        for method, one in own.items()
    }
    learned = _learned(collected)
    changes = {name: over_seeds(_slopes(quantity)) for name, quantity in learned.items()}
    steps = f"{float(collected['training_step'].sel(moment='common').max()):.0f} steps"
    lines = [
        f"After {steps}, with every doubling of the width: "
        + "; ".join(f"{name} {verb(change, *TREND)} ({change})" for name, change in changes.items())
        + ". That is early. After 300 epochs W̃⊥'s accuracy grows with width, as the paper says: "
        "[wang2025](wang2025.md).",
        "  - Rank: k is fixed, so it does not change with the width. Activity perturbation's directions do, and W̃⊥'s "
        "lead over it at the activations "
        + listed(f"{verb(lead, *TREND)} {NAMES[method]} ({lead})" for method, lead in leads.items())
        + " (slopes of log₂).",
    ]
    for method in STATES:
        effects = [
            _said(part, {layer: found[index] for layer, found in at_activations[method].items()})
            for index, part in enumerate(ACTIVATION_PARTS)
        ]
        parts = at_weights[method][schema.ALL_LAYERS]
        weights = [f"{part} {verb(one, *HELP)} ({one})" for part, one in zip(WEIGHT_PARTS, parts, strict=False)]
        lines.append(
            f"  - {NAMES[method]}: at the activations {'; '.join(effects)}. In weight space one guess's efficiency for "
            f"the net {verb(parts[-1], *TREND)} ({parts[-1]}): {listed(weights)}."
        )
    return "\n".join(lines), [
        "## (c) Does the method improve with width, and is it by overlap, rank or cross-layer noise?",
        "",
        f"W̃⊥ after {steps}, alone and over backpropagation:",
        "",
        table(
            ["width", *learned],
            [
                [str(width), *(str(over_seeds(quantity.sel(width=width))) for quantity in learned.values())]
                for width in all_widths(collected)
            ]
            + [["slope a doubling", *map(str, changes.values())], ["it", *(verb(c, *TREND) for c in changes.values())]],
        ),
        "",
        "Slopes of log₂ of the net's efficiency over log₂ of the width, at the common step:",
        "",
        table(["", *GUESSES], [[NAMES[method], *map(str, row)] for method, row in slopes.items()]),
        "",
        "At the activations the net's efficiency is the kept share of its squared gradient over K + 2, K the "
        "directions of all layers: W̃⊥ holds K fixed, activity perturbation's grows with the width. A layer's is "
        f"o²/({k}·n + 2), o² over the summed squares of the batch and n the noise that it takes from all layers over "
        "what it would make alone; the slopes of the two factors add up:",
        "",
        table(["", "overlap o²", f"1/({k}·n + 2)", "efficiency of the layer"], _rows(at_activations)),
        "",
        "In weight space it is c²·A/(1 + A + N): c² the squared cosine of the mean guess with the gradient, A the "
        "agreement of the examples (squared norm of the mean guess over the sum of the examples' own), N the variance "
        "over that sum, which holds the noise of all layers. The slopes of the three factors add up:",
        "",
        table(["", "overlap c²", "agreement A", "1/(1 + A + N)", "efficiency"], _rows(at_weights)),
    ]


def _learned(collected: xr.Dataset) -> dict[str, xr.DataArray]:
    """What W̃⊥ has learned at the common step, (width, seed)."""
    common = collected.sel(moment="common")
    accuracy, fall = common["train_accuracy"], common["initial_loss"] - common["loss"]
    found = {}
    for name, quantity in (("training accuracy", accuracy), ("fall of the loss", fall)):
        own, other = (quantity.sel(trained_by=method, drop=True) for method in ("orthogonal", "backpropagation"))
        found[f"W̃⊥'s {name}"] = own
        found[f"its {name} over backpropagation's"] = own / other
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


def _said(part: str, slopes: Mapping[str, Interval]) -> str:
    return f"{part} {listed(f'{verb(slope, *HELP)} in layer {layer} ({slope})' for layer, slope in slopes.items())}"


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
