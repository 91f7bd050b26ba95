"""Answers (a) and (b) of `studies.subspaces`: whose the overlap is, and whether it predicts the best k.

Every number and every verdict is read from the collected Dataset. Intervals are 95 % over seeds. A verdict says "more"
or "less" only where the interval of a difference, taken seed by seed, leaves zero out.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import special

from fganalysis import schema
from studies.markdown import capital, listed, scientific, table
from studies.seed_intervals import Interval, over_seeds
from studies.subspace_cells import METHODS
from studies.subspace_figures import NAMES
from studies.subspace_picks import NEAR, STATES, Answer, all_widths, hidden_layers, output_layer, trained, within

# Wang et al. 2025: training accuracy at width 128 for each k (Table 1); least and largest overlap, not squared, that
# Figure 1 may show in layers 1 and 2 after training by W̃⊥.
PAPER_SWEEP = {"1": 0.275, "10": 0.324, "25": 0.323, "rank": 0.311}
PAPER_OVERLAP = {128: ((0.91, 0.91), (0.84, 0.84)), 512: ((0.93, 0.95), (0.93, 0.95))}


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
        table(
            ["width", "random subspace", "random in J's row space, at initialisation", *(NAMES[m] for m in METHODS)],
            rows,
        ),
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
        [str(width), layer, f"{low}" if low == high else f"{low} to {high}", str(own), within(own, low, high)]
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
        f"{len(regret)} cases, and {100 * np.median(regret):.1f} % of the efficiency is lost in the median and "
        f"{100 * regret.max():.1f} % at most by following the sample. "
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
        f"- In all, {beyond} of {total} lie beyond 3 standard errors; {_chance(total):.1f} would by chance; "
        "layers and spaces share their draws.",
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


def _overlap(collected: xr.Dataset, width: int, method: str) -> xr.DataArray:
    return trained(collected, "overlap", width, method).sel(layer=hidden_layers(collected)[:-1]).mean("layer")


def _changes(collected: xr.Dataset, method: str, other: str) -> list[Interval]:
    return [over_seeds(_overlap(collected, w, method) - _overlap(collected, w, other)) for w in all_widths(collected)]


def _chance(n_comparisons: int) -> float:
    """How many of them a normal law puts beyond 3 standard errors."""
    return n_comparisons * 2 * float(special.ndtr(-3.0))


def _at(widths: list[int]) -> str:
    return f"width{'s' * (len(widths) > 1)} {listed(widths)}" if widths else "no width"
