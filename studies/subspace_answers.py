"""The answers (a)–(d) of `studies.subspaces`, every number read from the collected Dataset and every verdict from it.

Intervals are 95 % over seeds. A verdict says "more" or "less" only where the interval of a difference or slope, taken
seed by seed, leaves zero out.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import special

from fganalysis import schema
from studies.markdown import capital, listed, scientific, table, verb
from studies.seed_intervals import Interval, over_seeds
from studies.subspace_cells import METHODS
from studies.subspace_figures import BRANCH_NAMES, NAMES, progress_of

# Wang et al. 2025: training accuracy at width 128 for each k (Table 1), and over widths 64 to 512 (Table 3).
PAPER_SWEEP = {"1": 0.275, "10": 0.324, "25": 0.323, "rank": 0.311}
PAPER_WIDTHS = {"W̃⊥": (0.268, 0.323, 0.434, 0.581), "backpropagation": (0.536, 0.709, 0.887, 1.000)}
STATES = METHODS[:3]


def answers(collected: xr.Dataset, k: int) -> str:
    """The page docs/results/subspaces.md."""
    sections = (_head, _overlaps, _best_k, _width, _descent, _rest)
    return "\n".join(line for section in sections for line in [*section(collected, k), ""]).rstrip() + "\n"


def _head(collected: xr.Dataset, k: int) -> list[str]:
    rows = []
    for width in _widths(collected):
        cells = [str(width)]
        for method in METHODS[1:]:
            own = collected.sel(width=width, trained_by=method, moment="last")
            cells.append(f"{over_seeds(own['loss'])} ({over_seeds(own['train_accuracy'])})")
        rows.append(cells)
    initial = over_seeds(collected["initial_loss"].sel(trained_by="backpropagation").mean("width"))
    return [
        "# The subspace the gradient lives in",
        "",
        "Written by `python -m studies.subspaces` from its Dataset: do not edit. MLPs without biases, three hidden "
        "layers "
        f"of {listed(_widths(collected))} units; {collected.sizes['seed']} seeds; mean ± 95 % interval over seeds. "
        f"W̃⊥ is the "
        f"orthogonal upstream guess with k = {k}, W̃ᵀ the plain one. o² is the share of the squared activation "
        f"gradient in "
        "the k leading right singular vectors of its own example's upstream Jacobian. Layers bear their modules' "
        "names; "
        f"layer {_hidden(collected)[-1]}, the last hidden one, is left out of overlaps: its Jacobian has only the "
        f"outputs' "
        "directions, so o² says nothing of training.",
        "",
        f"Loss (accuracy) on the training set after training; before it, the loss is {initial}:",
        "",
        table(["width", *(NAMES[m] for m in METHODS[1:])], rows),
    ]


def _overlaps(collected: xr.Dataset, k: int) -> list[str]:
    layers, widths = _hidden(collected)[:-1], _widths(collected)
    rows = []
    for width in widths:
        start = collected.sel(width=width, layer=layers, moment="last", trained_by="initialisation")
        random = [float(start[name].mean()) for name in ("random_overlap", "random_overlap_in_range")]
        cells = [str(width), *(f"{value:.3f}" for value in random)]
        rows.append([*cells, *(str(over_seeds(_overlap(collected, width, m))) for m in METHODS)])
    start = collected.sel(layer=layers, moment="last", trained_by="initialisation")
    over_random = (start["overlap"] / start["random_overlap_in_range"]).mean(["seed", "layer"]).values
    ends = [over_seeds(_overlap(collected, width, "initialisation")) for width in (widths[0], widths[-1])]
    lines = [
        "## (a) Is the high overlap a property of gradients, or of training with that estimator?",
        "",
        "![overlap over width](subspaces_overlap_by_width.png)",
        "",
        f"o² at k = {k}, mean of layers {listed(layers)}, at the end of each training:",
        "",
        table(["width", "random subspace", "random in J's row space", *(NAMES[m] for m in METHODS)], rows),
        "",
        f"- At initialisation o² goes from {ends[0]} at width {widths[0]} to {ends[1]} at width {widths[-1]}: "
        f"{over_random.min():.1f} to {over_random.max():.1f} times what a random subspace of the Jacobian's row "
        f"space holds.",
    ]
    raised = {}
    for method in METHODS[1:]:
        changes = _changes(collected, method, "initialisation")
        raised[method] = [w for w, change in zip(widths, changes, strict=True) if change.low > 0]
        lines.append(f"- {capital(NAMES[method])}, o² changes by {listed(changes)}; it rises at {_at(raised[method])}.")
    anyway = len(raised["backpropagation"]) > len(widths) / 2
    cause = "Of training, whatever the gradient" if anyway else "Of training with the estimator"
    against = _changes(collected, "orthogonal", "backpropagation")
    higher = [w for w, change in zip(widths, against, strict=True) if change.low > 0]
    lower = [w for w, change in zip(widths, against, strict=True) if change.high < 0]
    lines += [
        f"- W̃⊥ less backpropagation: {listed(against)}. W̃⊥ leaves a higher overlap at {_at(higher)}, a lower one at "
        f"{_at(lower)}.",
        f"- **Answer.** {cause}: backpropagation alone raises the overlap at {_at(raised['backpropagation'])}, W̃⊥ at "
        f"{_at(raised['orthogonal'])}, beyond backpropagation at {_at(higher)}.",
    ]
    return lines


def _best_k(collected: xr.Dataset, k: int) -> list[str]:
    z = np.abs(collected["z"].values)
    z = z[np.isfinite(z)]
    chance = len(z) * 2 * float(special.ndtr(-3.0))
    # The output tap has no k of its own.
    chosen = collected[["regret", "predicted_choice", "sampled_choice"]].sel(
        layer=[*_hidden(collected), schema.ALL_LAYERS]
    )
    regret = chosen["regret"].values[np.isfinite(chosen["regret"].values)]
    agreed = int((chosen["predicted_choice"] == chosen["sampled_choice"]).sum())
    closely = [w for w in _widths(collected) if bool(chosen["sampled_choice"].sel(width=w).notnull().any())]
    width, hidden = closely[-1], _hidden(collected)
    lines = [
        "## (b) Is the predicted best k the best one by sampled efficiency, and the seed paper's?",
        "",
        "![energy curves](subspaces_energy_curves.png)",
        "",
        f"- Of {len(z)} sampled efficiencies (every width, state, seed, k, layer and space; those known to 10 %) "
        f"{int((z > 3).sum())} lie beyond 3 standard errors of the predicted one, {chance:.1f} would by chance; the "
        f"largest "
        f"distance is {z.max():.1f}.",
        f"- Of {len(regret)} choices between the sampled k at {_at(closely)}, sampling and theory make the same one "
        f"in {agreed}. "
        f"The sampled choice loses {100 * np.median(regret):.1f} % of the predicted efficiency in the median and "
        f"{100 * regret.max():.0f} % at most: the curves are flat at their top.",
    ]
    best = {}
    for method in STATES:
        own = collected["best_k"].sel(width=width, trained_by=method, moment="last")
        best[method] = [over_seeds(own.sel(space="activation", layer=layer)) for layer in hidden]
        net = [over_seeds(own.sel(space=space, layer=schema.ALL_LAYERS)) for space in schema.SPACES]
        lines.append(
            f"- Width {width}, {NAMES[method]}: the predicted best k is {listed(best[method])} for layers "
            f"{listed(hidden)} each "
            f"at its activations, {net[0]} for the net at its activations and {net[1]} at its weights."
        )
    output = _output(collected)
    share = over_seeds(
        collected["upstream_share"].sel(width=width, trained_by="initialisation", moment="last", layer=output)
    )
    lines += [
        f"- The net wants so few because layer {output}, the output, which has no k, holds {share} of the net's "
        f"squared "
        "activation gradient at initialisation: to that efficiency the hidden layers' directions are mostly noise.",
        "",
        f"Predicted efficiency at the k of the seed paper's Table 1, width {width}, at the weights; the hidden "
        f"layers' is "
        "their geometric mean, as AdamW gives every layer its own scale; the paper's column is training accuracy:",
        "",
        _sweep_table(collected, width),
        "",
        _paper_verdict(collected, width, [k_best.mean for ks in best.values() for k_best in ks]),
    ]
    return lines


def _sweep(collected: xr.Dataset, width: int, method: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Efficiency at the weights over (sweep, seed): the net's, and the hidden layers' geometric mean."""
    own = collected["sweep_efficiency"].sel(width=width, trained_by=method, moment="last", space="weight")
    hidden = own.sel(layer=_hidden(collected))
    return own.sel(layer=schema.ALL_LAYERS), hidden.prod("layer") ** (1 / hidden.sizes["layer"])


def _sweep_table(collected: xr.Dataset, width: int) -> str:
    rows = []
    for one, accuracy in PAPER_SWEEP.items():
        parts = [part.sel(sweep=one) for method in STATES for part in _sweep(collected, width, method)]
        rows.append([one, *(scientific(over_seeds(part)) for part in parts), f"{accuracy:.3f}"])
    header = [f"{part}, {NAMES[method]}" for method in STATES for part in ("net", "hidden layers")]
    return table(["k", *header, "seed paper"], rows)


def _paper_verdict(collected: xr.Dataset, width: int, best: list[float]) -> str:
    paper = max(PAPER_SWEEP, key=PAPER_SWEEP.__getitem__)
    chosen = []
    for method in STATES:
        net, hidden = (part.mean("seed").idxmax("sweep").item() for part in _sweep(collected, width, method))
        chosen.append(f"{hidden} (hidden layers) and {net} (net) {NAMES[method]}")
    between = min(best) <= int(paper) <= max(best)
    return (
        f"- **Answer.** By sampling, yes. Of the seed paper's k, whose sweep likes {paper} best, one step's "
        f"efficiency would "
        f"take {'; '.join(chosen)}. The best k of single layers goes from {max(best):.0f} at most down to "
        f"{min(best):.0f} as "
        f"training goes on: the paper's {paper} {'lies between' if between else 'lies outside'}, and no one step "
        f"singles it out."
    )


def _width(collected: xr.Dataset, k: int) -> list[str]:
    widths, hidden = _widths(collected), _hidden(collected)
    own = {method: collected.sel(trained_by=method, moment="common") for method in STATES}
    slopes = {
        method: {
            "net, weights": _slope(one["orthogonal_efficiency"].sel(space="weight", layer=schema.ALL_LAYERS)),
            "net, activations": _slope(one["orthogonal_efficiency"].sel(space="activation", layer=schema.ALL_LAYERS)),
            "activity perturbation, net, activations": _slope(
                one["activity_efficiency"].sel(space="activation", layer=schema.ALL_LAYERS)
            ),
        }
        for method, one in own.items()
    }
    parts = {
        (method, layer): (
            _slope(one["kept_energy"].sel(layer=layer)),
            _slope(1 / (k * one["cross_layer"].sel(layer=layer) + 2)),
            _slope(one["orthogonal_efficiency"].sel(space="activation", layer=layer)),
        )
        for method, one in own.items()
        for layer in hidden[:-1]
    }
    progress = [_relative_progress(collected, width, "orthogonal") for width in widths]
    paper = [a / b for a, b in zip(*PAPER_WIDTHS.values(), strict=True)]
    net = [slopes[method]["net, activations"] for method in STATES]
    weights = [slopes[method]["net, weights"] for method in STATES]
    activity = slopes["initialisation"]["activity perturbation, net, activations"]
    first = hidden[0]
    return [
        "## (c) Does the method improve with width, and by overlap, rank or cross-layer noise?",
        "",
        "Slopes of log₂ of an efficiency over log₂ of the width, at the step that all widths have:",
        "",
        table(
            ["", *slopes["initialisation"]],
            [[NAMES[method], *map(str, row.values())] for method, row in slopes.items()],
        ),
        "",
        f"A layer's efficiency at its activations is o²/({k}·n + 2), n being how much noise it takes from all "
        f"layers over "
        "its own; the slopes of the two factors add up:",
        "",
        table(
            ["", "overlap o²", "cross-layer noise", "efficiency of the layer"],
            [[f"{NAMES[method]}, layer {layer}", *map(str, row)] for (method, layer), row in parts.items()],
        ),
        "",
        f"- Fall of the training loss by W̃⊥ over backpropagation's in the same steps: {listed(progress)} at widths "
        f"{listed(widths)}. The seed paper's accuracies, over backpropagation's, are "
        f"{listed(f'{p:.2f}' for p in paper)} at "
        "widths 64 to 512.",
        f"- Rank: the net's efficiency at its activations is the kept share of the gradient over K + 2, with K the "
        f"directions of "
        f"all layers. W̃⊥ holds K fixed, so that slopes are {listed(net)} in the three states; activity "
        f"perturbation's K "
        f"grows with the width, and its slope is {activity}.",
        f"- Overlap: its slope in layer {first} is {parts['initialisation', first][0]} at initialisation, "
        f"{parts['backpropagation', first][0]} after backpropagation and {parts['orthogonal', first][0]} after W̃⊥: "
        "training keeps wide layers as good as narrow ones.",
        f"- Cross-layer noise: its slope in layer {first} is {parts['initialisation', first][1]}, "
        f"{parts['backpropagation', first][1]} and {parts['orthogonal', first][1]} in the same states.",
        f"- **Answer.** One step of W̃⊥ on the net "
        f"{listed(verb(s, 'gains', 'loses', 'neither gains nor loses') for s in weights)} efficiency at the weights "
        f"with width "
        f"({listed(weights)}), in the three states, and at the activations it is that of any width. What grows is "
        f"its lead over guesses "
        f"whose rank grows, by a slope of {net[0].mean - activity.mean:.2f}: rank makes the method wide, training "
        f"makes "
        "the overlap that this needs, and cross-layer noise is no better in wide nets than the slopes above say.",
    ]


def _descent(collected: xr.Dataset, k: int) -> list[str]:
    branches = [str(b) for b in collected["branch"].values]
    share = {b: over_seeds(collected["descent_share"].sel(branch=b)) for b in branches}
    done = dict(zip(branches, map(over_seeds, progress_of(collected["descent_loss"])), strict=True))
    song = "no, as Song et al. say" if done["dominant"].high < share["dominant"].low else "not against it"
    near = abs(done["top"].mean - share["top"].mean) < 0.1 and abs(done["other"].mean - share["other"].mean) < 0.25
    lines = [
        "## (d) Does gradient energy in a subspace predict progress when descending in it?",
        "",
        "![descent along parts of the gradient](subspaces_descent.png)",
        "",
        "From one point, with the same minibatches and learning rate. Progress is the fall of the training loss, "
        "mean over the "
        "steps, over that along the whole gradient (for the Jacobians' parts: the hidden layers' gradient):",
        "",
        table(
            ["part of the gradient", "share of its square", "progress"],
            [[BRANCH_NAMES[b], str(share[b]), str(done[b])] for b in branches],
        ),
        "",
        f"- **Answer.** In the Hessian's {k} leading directions, {song}: they hold {share['dominant']} of the "
        f"squared gradient "
        f"and give {done['dominant']} of the progress; the rest holds {share['bulk']} and gives {done['bulk']}.",
        f"- In the upstream Jacobians' {k} leading directions energy {'does' if near else 'does not'} come close to "
        f"it: they "
        f"hold {share['top']} and give {done['top']}; what they leave holds {share['rest']} and gives "
        f"{done['rest']}; as many "
        f"random directions of the same row spaces hold {share['other']} and give {done['other']}.",
    ]
    width = _widths(collected)[0]
    hessian = collected.sel(directions="hessian", moment="last", width=width)
    for method in STATES:
        own = hessian.sel(trained_by=method)
        lines.append(
            f"- Width {width}, {NAMES[method]}: the Hessian's {k} leading directions hold "
            f"{over_seeds(own['curvature_share'])} of the "
            f"squared weight gradient (random ones {float(own['curvature_random_share'].mean()):.1g}) and "
            f"{over_seeds(own['curvature_truncated_share'])} of the gradient truncated to the Jacobians' {k} "
            f"directions, whose "
            f"squared cosine with the whole is {over_seeds(own['curvature_kept'])}."
        )
    return lines


def _rest(collected: xr.Dataset, k: int) -> list[str]:
    width = [w for w in _widths(collected) if bool(collected["turned"].sel(width=w).notnull().any())][-1]
    first, layers = _hidden(collected)[0], [*_hidden(collected), _output(collected)]
    at_end = collected.sel(width=width, moment="last")
    matrices = [str(name) for name in collected["matrix"].values]
    ranks = [
        [
            NAMES[m],
            *(str(over_seeds(at_end["entropy_rank"].sel(trained_by=m, layer=first, matrix=x))) for x in matrices),
        ]
        for m in METHODS
    ]
    lines = [
        "## Ranks, turning and sharpening",
        "",
        "![principal angles over the steps](subspaces_principal_angles.png)",
        "",
        f"Entropy ranks at width {width}, layer {first}, after training:",
        "",
        table(["", *(matrix.replace("_", " ") for matrix in matrices)], ranks),
        "",
    ]
    for method in METHODS[1:]:
        own = collected.sel(width=width, trained_by=method, layer=first)
        angles = [
            over_seeds(own["turned"].sel(matrix=matrix)) for matrix in ("activation_gradient", "upstream_jacobian")
        ]
        lines.append(
            f"- {capital(NAMES[method])}, the gradients' {k} leading directions turn by {angles[0]} degrees between "
            f"the first "
            f"and the last step and the Jacobians' by {angles[1]} (mean principal angle; random ones differ by "
            f"{over_seeds(own['random_angle'])}). Gradients of all looked-at steps have entropy rank "
            f"{over_seeds(own['stacked_rank'])}, those of one step {over_seeds(own['single_rank'])}."
        )
    start = at_end["initial_weight_rank"].sel(trained_by="backpropagation")
    rows = [[NAMES["initialisation"], *(str(over_seeds(start.sel(layer=one))) for one in layers)]]
    for method in METHODS[1:]:
        rows.append(
            [
                NAMES[method],
                *(str(over_seeds(at_end["weight_rank"].sel(trained_by=method, layer=one))) for one in layers),
            ]
        )
    ratio = (at_end["weight_rank"] / at_end["initial_weight_rank"]).sel(layer=layers[1:-1]).mean("layer")
    sharper = {method: over_seeds(ratio.sel(trained_by=method)) for method in METHODS[1:]}
    words = verb(sharper["upstream"], "raises", "lowers", "does not change", 1.0)
    lines += [
        "",
        "![singular values of the weights](subspaces_weights.png)",
        "",
        f"Stable rank of the weights at width {width}:",
        "",
        table(["", *(f"layer {one}" for one in layers)], rows),
        "",
        f"- Self-sharpening: W̃ᵀ {words} the stable rank of layers {listed(layers[1:-1])}, to {sharper['upstream']} "
        f"of what it was; "
        f"W̃⊥ brings it to {sharper['orthogonal']} and backpropagation to {sharper['backpropagation']}.",
    ]
    return lines


def _overlap(collected: xr.Dataset, width: int, method: str) -> xr.DataArray:
    own = collected["overlap"].sel(width=width, trained_by=method, moment="last", layer=_hidden(collected)[:-1])
    return own.mean(dim="layer")


def _changes(collected: xr.Dataset, method: str, other: str) -> list[Interval]:
    return [over_seeds(_overlap(collected, w, method) - _overlap(collected, w, other)) for w in _widths(collected)]


def _relative_progress(collected: xr.Dataset, width: int, method: str) -> Interval:
    own = collected.sel(width=width, moment="common")
    fall = own["initial_loss"] - own["loss"]
    return over_seeds(fall.sel(trained_by=method) / fall.sel(trained_by="backpropagation"))


def _slope(quantity: xr.DataArray) -> Interval:
    """Of log₂ over log₂ of the width, a least-squares line a seed."""
    values = np.log2(quantity.transpose("width", "seed").values)
    return over_seeds(np.polyfit(np.log2(quantity["width"].values), values, 1)[0])


def _hidden(collected: xr.Dataset) -> list[str]:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][:-1]


def _output(collected: xr.Dataset) -> str:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][-1]


def _widths(collected: xr.Dataset) -> list[int]:
    return [int(width) for width in collected["width"].values]


def _at(widths: list[int]) -> str:
    return f"width{'s' * (len(widths) > 1)} {listed(widths)}" if widths else "no width"
