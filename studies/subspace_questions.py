"""The four questions of `studies.subspaces`: for each a short answer and the section that backs it.

Every number and every verdict is read from the collected Dataset. Intervals are 95 % over seeds. A verdict says "more"
or "less" only where the interval of a difference or slope, taken seed by seed, leaves zero out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from fganalysis import schema
from studies.markdown import capital, listed, scientific, table, verb
from studies.seed_intervals import Interval, over_seeds
from studies.subspace_cells import METHODS
from studies.subspace_figures import BRANCH_NAMES, NAMES, progress_of

# Wang et al. 2025: training accuracy at width 128 for each k (Table 1), over widths by W̃⊥ and by backpropagation
# (Table 3); least and largest overlap, not squared, that Figure 1 may show in layers 1 and 2 after training by W̃⊥.
PAPER_SWEEP = {"1": 0.275, "10": 0.324, "25": 0.323, "rank": 0.311}
PAPER_WIDTHS = {64: (0.268, 0.536), 128: (0.323, 0.709), 256: (0.434, 0.887), 512: (0.581, 1.000)}
PAPER_OVERLAP = {128: ((0.91, 0.91), (0.84, 0.84)), 512: ((0.93, 0.95), (0.93, 0.95))}
STATES = METHODS[:3]
NEAR = 0.1  # progress and share of energy are called alike where they differ by less
HELP = ("helps", "hurts", "does neither")
Answer = tuple[str, list[str]]


def overlaps(collected: xr.Dataset, k: int) -> Answer:
    layers, widths = hidden_layers(collected)[:-1], all_widths(collected)
    start = collected.sel(layer=layers, moment="last", trained_by="initialisation").mean("layer")
    rows = []
    for width in widths:
        random = [over_seeds(start[name].sel(width=width)) for name in ("random_overlap", "random_overlap_in_range")]
        rows.append([str(width), *map(str, [*random, *(over_seeds(_overlap(collected, width, m)) for m in METHODS)])])
    changes = {method: _changes(collected, method, "initialisation") for method in METHODS[1:]}
    risen = {method: [w for w, c in zip(widths, own, strict=True) if c.low > 0] for method, own in changes.items()}
    against = _changes(collected, "orthogonal", "backpropagation")
    higher = [w for w, change in zip(widths, against, strict=True) if change.low > 0]
    lower = [w for w, change in zip(widths, against, strict=True) if change.high < 0]
    whose = "Of neither, within these intervals"
    if 2 * len(risen["backpropagation"]) > len(widths):
        whose = "Of training, not of training with that estimator"
    elif 2 * len(risen["orthogonal"]) > len(widths):
        whose = "Of training with that estimator"
    before, after = (over_seeds(_overlap(collected, widths[-1], method)) for method in METHODS[:2])
    short = (
        f"{whose}. Backpropagation alone raises o² at {_at(risen['backpropagation'])} (width {widths[-1]}: from "
        f"{before} to {after}), W̃⊥ raises it at {_at(risen['orthogonal'])}; it ends above backpropagation at "
        f"{_at(higher)} and below it at {_at(lower)}."
    )
    over_random = (start["overlap"] / start["random_overlap_in_range"]).mean("seed").values
    lines = [
        "## (a) Is the high overlap a property of gradients, or of training with that estimator?",
        "",
        "![overlap over width](subspaces_overlap_by_width.png)",
        "",
        f"o² at k = {k}, mean of layers {listed(layers)}, after the last step of each training:",
        "",
        table(["width", "random subspace", "random in J's row space", *(NAMES[m] for m in METHODS)], rows),
        "",
        f"- At initialisation o² is {over_random.min():.1f} to {over_random.max():.1f} times what a random subspace of "
        "the Jacobian's row space holds.",
        *(
            f"- {capital(NAMES[method])}, o² changes by {listed(own)} over these widths."
            for method, own in changes.items()
        ),
        f"- W̃⊥ less backpropagation: {listed(against)}.",
    ]
    printed = [
        [str(width), layer, f"{low}" if low == high else f"{low} to {high}", str(own), _within(own, low, high)]
        for width, ranges in PAPER_OVERLAP.items()
        if width in widths and k == 10
        for layer, (low, high) in zip(layers, ranges, strict=True)
        for own in [over_seeds(trained(collected, "overlap_root", width, "orthogonal").sel(layer=layer))]
    ]
    if printed:
        head = ["width", "layer", "seed paper", "here", "within the interval"]
        lines += [
            "",
            "o, not squared, after training by W̃⊥, beside Figure 1 of the seed paper:",
            "",
            table(head, printed),
        ]
    return short, lines


def best_k(collected: xr.Dataset, k: int) -> Answer:
    hidden = hidden_layers(collected)
    rows, beyond, total = [], 0, 0
    for quantity in collected["quantity"].values:
        z = np.abs(collected["z"].sel(quantity=quantity).values)
        z = z[np.isfinite(z)]
        beyond, total = beyond + int((z > 3).sum()), total + len(z)
        row = [len(z), int((z > 3).sum()), f"{_chance(len(z)):.1f}", f"{z.max():.1f}"]
        rows.append([str(quantity).replace("_", " "), *map(str, row)])
    # The output tap has no k of its own.
    chosen = collected[["regret", "predicted_choice", "sampled_choice"]]
    chosen = chosen.sel(layer=[*hidden, schema.ALL_LAYERS])
    regret = chosen["regret"].values[np.isfinite(chosen["regret"].values)]
    agreed = int((chosen["predicted_choice"] == chosen["sampled_choice"]).sum())
    width = [w for w in all_widths(collected) if bool(chosen["sampled_choice"].sel(width=w).notnull().any())][-1]
    best = []
    for method in STATES:
        own = trained(collected, "best_k", width, method)
        cells = [own.sel(space="activation", layer=layer) for layer in hidden]
        cells += [own.sel(space=space, layer=schema.ALL_LAYERS) for space in schema.SPACES]
        best.append([over_seeds(cell) for cell in cells])
    liked = [[str(p.mean("seed").idxmax("sweep").item()) for p in _sweep(collected, width, m)] for m in STATES]
    hidden_likes, net_likes = (listed(likes) for likes in zip(*liked, strict=True))
    paper = max(PAPER_SWEEP, key=PAPER_SWEEP.__getitem__)
    single = [one.mean for row in best for one in row[: len(hidden)]]
    between = min(single) <= float(paper) <= max(single)
    output = output_layer(collected)
    share = over_seeds(trained(collected, "upstream_share", width, "initialisation").sel(layer=output))
    short = (
        f"With sampling {'yes' if regret.max() < NEAR else 'mostly'}: both choose the same k in {agreed} of "
        f"{len(regret)} cases, and where they differ at most {100 * regret.max():.1f} % of the efficiency is lost. "
        f"With the seed paper's sweep {'loosely' if between else 'no'}: it likes {paper} best, while of its four k one "
        f"step's efficiency likes {hidden_likes} in the three states for the hidden layers and {net_likes} for the "
        f"net; single layers' best k go from {min(single):.0f} to {max(single):.0f}."
    )
    return short, [
        "## (b) Is the predicted best k the best one by sampled efficiency, and the seed paper's?",
        "",
        "![energy curves](subspaces_energy_curves.png)",
        "",
        "Sampled against predicted, over every width, state, seed, sampled k, layer and space (efficiencies known to "
        "10 %):",
        "",
        table(["", "comparisons", "beyond 3 standard errors", "by chance", "largest"], rows),
        "",
        f"- In all, {beyond} of {total} lie beyond 3 standard errors; {_chance(total):.1f} would by chance.",
        f"- The sampled choice loses {100 * np.median(regret):.1f} % of the predicted efficiency in the median.",
        "",
        f"Predicted best k at width {width}: of each layer at its activations, and one k in all layers for the net:",
        "",
        table(
            ["", *(f"layer {layer}" for layer in hidden), *(f"net, {space} space" for space in schema.SPACES)],
            [[NAMES[method], *map(str, row)] for method, row in zip(STATES, best, strict=True)],
        ),
        "",
        f"- Layer {output}, the output, has no k and holds {share} of the net's squared activation gradient at "
        "initialisation: directions of other layers are noise to it.",
        "",
        f"Predicted efficiency in weight space at the k of the seed paper's Table 1, width {width}; for the hidden "
        "layers their geometric mean, as AdamW gives each its own scale. The paper's column is training accuracy:",
        "",
        _sweep_table(collected, width),
    ]


def _sweep(collected: xr.Dataset, width: int, method: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Efficiency in weight space over (sweep, seed): the hidden layers' geometric mean, and the net's."""
    own = trained(collected, "sweep_efficiency", width, method).sel(space="weight")
    hidden = own.sel(layer=hidden_layers(collected))
    return hidden.prod("layer") ** (1 / hidden.sizes["layer"]), own.sel(layer=schema.ALL_LAYERS)


def _sweep_table(collected: xr.Dataset, width: int) -> str:
    rows = []
    for one, accuracy in PAPER_SWEEP.items():
        parts = [part.sel(sweep=one) for method in STATES for part in _sweep(collected, width, method)]
        rows.append([one, *(scientific(over_seeds(part)) for part in parts), f"{accuracy:.3f}"])
    header = [f"{part}, {NAMES[method]}" for method in STATES for part in ("hidden layers", "net")]
    return table(["k", *header, "seed paper"], rows)


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
        beside = ["—", "—"] if printed is None else [f"{printed:.2f}", _within(ratio, printed, printed)]
        rows.append([str(width), str(over_seeds(fall.sel(width=width))), str(ratio), *beside])
    guesses = [one.sel(space="activation") for one in net.values()]
    leads = [_slope(one["orthogonal_efficiency"] / one["activity_efficiency"]) for one in guesses]
    by_weights = [slopes[method][0] for method in STATES]
    overlap, noise = ([parts[method, layers[0]][part] for method in STATES] for part in (0, 1))
    learned = over_seeds(_slopes(accuracy))
    short = (
        f"Over backpropagation's, W̃⊥'s training accuracy {verb(learned, 'grows', 'shrinks', 'does not change')} with "
        f"width, by {learned} with every doubling. What one guess is worth in weight space "
        f"{_verbs(by_weights, 'grows', 'shrinks', 'does not change')} (slopes of log efficiency over log width in the "
        f"three states: {listed(by_weights)}). Its lead over activity perturbation "
        f"{_verbs(leads, 'grows', 'shrinks', 'does not change')} (slopes {listed(leads)}), and that is rank: k stays "
        f"while the width grows. Overlap {_verbs(overlap, *HELP)} (slopes in layer {layers[0]}: {listed(overlap)}), "
        f"cross-layer noise {_verbs(noise, *HELP)} ({listed(noise)})."
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
    done = dict(zip(branches, map(over_seeds, progress_of(collected["descent_loss"])), strict=True))
    song = (
        "No, as Song et al. say" if done["dominant"].high < share["dominant"].low else "Within these intervals it may"
    )
    near = all(abs(done[b].mean - share[b].mean) < NEAR for b in ("top", "other", "rest"))
    short = (
        f"{song}: the Hessian's {k} leading directions hold {share['dominant']} of the squared gradient and give "
        f"{done['dominant']} of the progress, the rest holds {share['bulk']} and gives {done['bulk']}. In the upstream "
        f"Jacobians' {k} leading directions energy {'predicts' if near else 'does not exactly predict'} it: they hold "
        f"{share['top']} and give {done['top']}, what they leave {share['rest']} and {done['rest']}, random directions "
        f"of the same row spaces {share['other']} and {done['other']}."
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


def trained(collected: xr.Dataset, name: str, width: int, method: str) -> xr.DataArray:
    """A variable after the last step of one method at one width."""
    return collected[name].sel(width=width, trained_by=method, moment="last")


def hidden_layers(collected: xr.Dataset) -> list[str]:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][:-1]


def output_layer(collected: xr.Dataset) -> str:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][-1]


def all_widths(collected: xr.Dataset) -> list[int]:
    return [int(width) for width in collected["width"].values]


def _overlap(collected: xr.Dataset, width: int, method: str) -> xr.DataArray:
    return trained(collected, "overlap", width, method).sel(layer=hidden_layers(collected)[:-1]).mean("layer")


def _changes(collected: xr.Dataset, method: str, other: str) -> list[Interval]:
    return [over_seeds(_overlap(collected, w, method) - _overlap(collected, w, other)) for w in all_widths(collected)]


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


def _verbs(intervals: Sequence[Interval], more: str, less: str, neither: str) -> str:
    said = [verb(one, more, less, neither) for one in intervals]
    return said[0] if len(set(said)) == 1 else listed(said)


def _within(own: Interval, low: float, high: float) -> str:
    return "yes" if own.low <= high and low <= own.high else "no"


def _chance(n_comparisons: int) -> float:
    """How many of them a normal law puts beyond 3 standard errors."""
    return n_comparisons * 2 * float(special.ndtr(-3.0))


def _at(widths: list[int]) -> str:
    return f"width{'s' * (len(widths) > 1)} {listed(widths)}" if widths else "no width"
