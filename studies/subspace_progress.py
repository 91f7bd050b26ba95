"""Answers (c) and (d) of `studies.subspaces`: what overlap, rank and noise make of width, and energy of progress.

Every number and every verdict is read from the collected Dataset. Intervals are 95 % over seeds. A verdict says "more"
or "less" only where the interval of a slope, taken seed by seed, leaves zero out.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis import schema
from studies.descent import BRANCHES
from studies.markdown import listed, table, verb
from studies.seed_intervals import Interval, over_seeds
from studies.subspace_cells import METHODS
from studies.subspace_figures import BRANCH_NAMES, NAMES, progress_of
from studies.subspace_picks import NEAR, STATES, Answer, all_widths, hidden_layers, verbs, within

# Wang et al. 2025, Table 3: training accuracy over widths, by W̃⊥ and by backpropagation.
PAPER_WIDTHS = {64: (0.268, 0.536), 128: (0.323, 0.709), 256: (0.434, 0.887), 512: (0.581, 1.000)}
HELP = ("helps", "hurts", "does neither")


def widths_compared(collected: xr.Dataset, k: int) -> Answer:
    widths, layers = all_widths(collected), hidden_layers(collected)[:-1]
    own = {method: collected.sel(trained_by=method, moment="common") for method in STATES}
    net = {method: one.sel(layer=schema.ALL_LAYERS) for method, one in own.items()}
    columns = {
        "W̃⊥, weights": ("orthogonal_efficiency", "weight"),
        "W̃⊥, activations": ("orthogonal_efficiency", "activation"),
        "W̃ᵀ, activations": ("upstream_efficiency", "activation"),
        "activity perturbation, activations": ("activity_efficiency", "activation"),
    }
    slopes = {
        method: [_slope(one[name].sel(space=space)) for name, space in columns.values()] for method, one in net.items()
    }
    parts = {
        (method, layer): (
            _slope(one["kept_energy"].sel(layer=layer)),
            _slope(1 / (k * one["cross_layer"].sel(layer=layer) + 2)),
            _slope(one["orthogonal_efficiency"].sel(space="activation", layer=layer)),
        )
        for method, one in own.items()
        for layer in layers
    }
    fall, accuracy = _over_backpropagation(collected)
    rows = []
    for width in widths:
        ratio = over_seeds(accuracy.sel(width=width))
        printed = np.divide(*PAPER_WIDTHS[width]) if width in PAPER_WIDTHS else None
        beside = ["—", "—"] if printed is None else [f"{printed:.2f}", within(ratio, printed, printed)]
        rows.append([str(width), str(over_seeds(fall.sel(width=width))), str(ratio), *beside])
    guesses = [one.sel(space="activation") for one in net.values()]
    leads = [_slope(one["orthogonal_efficiency"] / one["activity_efficiency"]) for one in guesses]
    by_weights = [slopes[method][0] for method in STATES]
    overlap, noise = ([parts[method, layers[0]][part] for method in STATES] for part in (0, 1))
    learned = over_seeds(_slopes(accuracy))
    short = (
        f"{verb(learned, 'Yes', 'No', 'Not measurably')}: W̃⊥'s training accuracy over backpropagation's after as many "
        f"steps changes by {learned} with every doubling of the width. What one guess is worth in weight space "
        f"{verbs(by_weights, 'grows', 'shrinks', 'does not change')} (slopes of log efficiency over log width in the "
        f"three states: {listed(by_weights)}). Its lead over activity perturbation "
        f"{verbs(leads, 'grows', 'shrinks', 'does not change')} (slopes {listed(leads)}), and that is rank: k stays "
        f"while the width grows. Overlap {verbs(overlap, *HELP)} (slopes in layer {layers[0]}: {listed(overlap)}), "
        f"cross-layer noise {verbs(noise, *HELP)} ({listed(noise)})."
    )
    return short, [
        "## (c) Does the method improve with width, and is it by overlap, rank or cross-layer noise?",
        "",
        "Slopes of log₂ of the net's efficiency over log₂ of the width, at the common step:",
        "",
        table(["", *columns], [[NAMES[method], *map(str, row)] for method, row in slopes.items()]),
        "",
        "At the activations the net's efficiency is the kept share of its squared gradient over K + 2, K the "
        "directions of all layers: W̃⊥ holds K fixed, activity perturbation's grows with the width. A layer's is "
        f"o²/({k}·n + 2), o² over the summed squares of the batch and n the noise that it takes from all layers over "
        "what it would make alone; the slopes of the two factors add up:",
        "",
        table(
            ["", "overlap o²", f"1/({k}·n + 2)", "efficiency of the layer"],
            [[f"{NAMES[method]}, layer {layer}", *map(str, row)] for (method, layer), row in parts.items()],
        ),
        "",
        "W̃⊥ over backpropagation after the common step, in the fall of the training loss and in training accuracy; "
        "the seed paper's ratio is that of its Table 3, after 300 epochs:",
        "",
        table(["width", "fall of the loss", "accuracy", "seed paper, accuracy", "within the interval"], rows),
    ]


def descent(collected: xr.Dataset, k: int) -> Answer:
    branches = [str(b) for b in collected["branch"].values]
    share = {b: over_seeds(collected["descent_share"].sel(branch=b)) for b in branches}
    progress = dict(zip(BRANCHES, progress_of(collected["descent_loss"]), strict=True))
    done = {b: over_seeds(progress[b]) for b in branches}
    less = over_seeds(progress["dominant"] - collected["descent_share"].sel(branch="dominant").values)
    song = "No, as Song et al. say" if less.high < 0 else "Within these intervals it may"
    near = all(abs(done[b].mean - share[b].mean) < NEAR for b in ("top", "other", "rest"))
    short = (
        f"{song}: the Hessian's {k} leading directions hold {share['dominant']} of the squared gradient and give "
        f"{done['dominant']} of the progress (less their share: {less}), the rest holds {share['bulk']} and gives "
        f"{done['bulk']}. At the upstream Jacobians share and progress {'agree' if near else 'do not all agree'} to "
        f"within {NEAR}: their {k} leading directions hold {share['top']} and give {done['top']}, what they leave "
        f"{share['rest']} and {done['rest']}, random directions of the same row spaces {share['other']} and "
        f"{done['other']}."
    )
    width = all_widths(collected)[0]
    hessian = collected.sel(directions="hessian", moment="last", width=width)
    names = ("curvature_share", "curvature_random_share", "curvature_truncated_share", "curvature_kept")
    rows = [
        [NAMES[method], *(str(over_seeds(hessian[name].sel(trained_by=method))) for name in names)]
        for method in METHODS
    ]
    return short, [
        "## (d) Does gradient energy in a subspace predict progress when descending in it?",
        "",
        "![descent along parts of the gradient](subspaces_descent.png)",
        "",
        "Plain stochastic gradient descent from one point, with the same minibatches and learning rate. Progress is "
        "the fall of the training loss, mean over the steps, over that along the whole gradient (for the Jacobians' "
        "parts: over that along the hidden layers' gradient):",
        "",
        table(
            ["part of the gradient", "share of its square", "progress"],
            [[BRANCH_NAMES[b], str(share[b]), str(done[b])] for b in branches],
        ),
        "",
        f"Gur-Ari's claim beside it, at width {width}: shares of the squared weight gradient in the Hessian's {k} "
        f"leading eigenvectors, of the gradient truncated to the Jacobians' {k} leading directions in the same, and "
        "the truncated gradient's squared cosine with the whole:",
        "",
        table(["", "gradient", "in random directions", "truncated gradient", "squared cosine"], rows),
    ]


def _over_backpropagation(collected: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """W̃⊥'s fall of the training loss and training accuracy over backpropagation's at the common step, (width, seed)."""
    own = collected.sel(moment="common")
    fall, accuracy = own["initial_loss"] - own["loss"], own["train_accuracy"]
    first, second = (
        one.sel(trained_by="orthogonal", drop=True) / one.sel(trained_by="backpropagation", drop=True)
        for one in (fall, accuracy)
    )
    return first, second


def _slopes(quantity: xr.DataArray) -> NDArray[np.float64]:
    """Over log₂ of the width, a least-squares line a seed."""
    return np.polyfit(np.log2(quantity["width"].values), quantity.transpose("width", "seed").values, 1)[0]


def _slope(quantity: xr.DataArray) -> Interval:
    """Of log₂ of a quantity over log₂ of the width."""
    return over_seeds(_slopes(quantity.copy(data=np.log2(quantity.values))))
