"""Tables, figures and page of `studies.wang2025`, from its cells alone, beside what the paper prints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import special

from studies.kit.markdown import listed, scientific, table, verb
from studies.kit.seeds import Interval, over_seeds
from studies.wang2025.cells import ITERATIONS, METRIC_GUESSES, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "weight": "weight perturbation",
    "activity": "activity perturbation",
    "upstream": "W̃ᵀ",
    "orthogonal, k = 1": "W̃⊥, k = 1",
    "orthogonal, k = 10": "W̃⊥, k = 10",
    "orthogonal, k = 25": "W̃⊥, k = 25",
    "orthogonal, k = rank": "W̃⊥, k = rank",
    "orthogonal, k = 10, iterated": "W̃⊥, k = 10, iterated",
    "preconditioned": "W̃^P",
    "backpropagation": "backpropagation",
}
WIDTHS = (64, 128, 256, 512)
# What the paper prints, training accuracy after 300 epochs.
TABLE_3 = {
    "weight": (0.121, 0.124, 0.179, 0.177),
    "activity": (0.201, 0.275, 0.309, 0.319),
    "upstream": (0.268, 0.312, 0.376, 0.494),
    "orthogonal, k = 10": (0.268, 0.323, 0.434, 0.581),
    "backpropagation": (0.536, 0.709, 0.887, 1.000),
}
TABLE_1 = {
    "upstream": 0.312,
    "orthogonal, k = rank": 0.311,
    "orthogonal, k = 25": 0.323,
    "orthogonal, k = 10": 0.324,
    "orthogonal, k = 1": 0.275,
}
# Guess → variance, bias and covariance norm; which layer and epoch, table 2 does not say.
TABLE_2 = {
    "upstream": (1.50e-4, 2.75e-4, 0.084),
    "orthogonal, bottom": (1.30e-5, 2.83e-4, 0.085),
    "orthogonal": (1.03e-5, 2.86e-5, 0.085),
}
# Each with half a unit of its last printed digit where our interval may be narrower: W̃⊥'s covariance norm is √(d −
# k)/d whatever the weights.
METRICS = {"variance": 0.0, "bias": 0.0, "covariance_norm": 5e-4}
# Trained by → the guess measured, variance and bias in layer 1, training and test accuracy.
TABLE_5 = {
    "orthogonal, k = 10": ("orthogonal", 6.33e-6, 3.63e-5, 0.433, 0.383),
    "preconditioned": ("preconditioned", 1.75e-4, 1.35e-8, 0.367, 0.314),
    "upstream": ("upstream", 7.04e-5, 1.68e-4, 0.375, 0.316),
}
RANKS: dict[int, tuple[float, ...]] = {128: (64, 97, 10), 512: (260, 387, 10)}
OVERLAPS: dict[int, tuple[float, ...]] = {128: (0.91, 0.84, 1.0)}
JACOBIAN = ("jacobian_rank", "overlap", "squared_overlap")
ORDER = (("orthogonal, k = 10", "upstream"), ("upstream", "activity"), ("orthogonal, k = 10", "activity"))
JUDGED = (128, 256)  # The widths at which the order is asked for with intervals apart.


def collect(cells: dict[Training, xr.Dataset]) -> xr.DataTree:
    """All cells over (trained_by, width, seed): /training over step, /jacobian before and after, /metrics after."""
    if not cells:
        raise SystemExit("error: no training is finished yet")
    groups: dict[str, list[xr.Dataset]] = {"training": [], "jacobian": [], "metrics": []}
    for one, dataset in cells.items():
        placed = dataset.expand_dims(trained_by=[one.method], width=[one.width], seed=[one.seed])
        groups["training"].append(placed[["loss", "train_accuracy", "test_accuracy", "cosine"]])
        groups["jacobian"].append(placed[list(JACOBIAN)])
        if "variance" in placed:
            names = ("variance", "variance_se", "bias", "bias_se", "covariance_norm")
            groups["metrics"].append(placed[[name for name in names if name in placed]])
    epochs = next(iter(cells)).epochs
    nodes = {
        name: xr.merge(parts, join="outer", compat="no_conflicts", combine_attrs="drop")
        for name, parts in groups.items()
        if parts
    }
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = {"epochs": epochs, "subspace_iterations": ITERATIONS, "metric_guesses": METRIC_GUESSES}
    return tree


def cells(tree: xr.DataTree) -> dict[Training, xr.Dataset]:
    """What was collected, training by training."""
    found = {}
    nodes = {name: tree[name].to_dataset() for name in tree.children}
    training = nodes["training"]
    for method, width, seed in itertools.product(*(training[name].values for name in ("trained_by", "width", "seed"))):
        where = {"trained_by": method, "width": width, "seed": seed}
        if np.isfinite(training["loss"].sel(where).isel(step=0)):
            parts = []
            for node in nodes.values():
                if all(value in node[name].values for name, value in where.items()):
                    own = node.sel(where).drop_vars(list(where))
                    parts.append(own.dropna("guess_kind", how="all") if "guess_kind" in own.dims else own)
            one = Training(str(method), int(width), int(seed), int(tree.attrs["epochs"]))
            found[one] = xr.merge([part for part in parts if 0 not in part.sizes.values()])
    return found


def final(tree: xr.DataTree, method: str, width: int, name: str = "train_accuracy") -> xr.DataArray:
    """One number a seed, after the last step; empty where no such cell is finished."""
    training = tree["training"].to_dataset()
    if method not in training["trained_by"].values or width not in training["width"].values:
        return xr.DataArray(np.empty(0), dims="seed", coords={"seed": np.empty(0, dtype=int)})
    return training[name].sel(trained_by=method, width=width).isel(step=-1).dropna("seed")


def difference(tree: xr.DataTree, better: str, worse: str, width: int) -> Interval:
    """Training accuracy of one method less another's, over the seeds that both have: same weights, same batches."""
    one, other = xr.align(final(tree, better, width), final(tree, worse, width), join="inner")
    return over_seeds((one - other).values)


def text(tree: xr.DataTree) -> str:
    """What is printed, and the body of the page."""
    parts = [_table_3(tree), _ordering(tree)]
    if len(final(tree, "orthogonal, k = 1", 128)):
        parts += [_table_1(tree), _table_2(tree)]
    if len(final(tree, "preconditioned", 256)):
        parts.append(_table_5(tree))
    parts.append(_figure_1(tree))
    parts.append(_iterations(tree))
    return "\n\n".join(part for part in parts if part)


def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """What the page shows, by the end of the file's name."""
    return {"accuracy": _accuracy_figure(tree), "overlap": _overlap_figure(tree)}


def page(tree: xr.DataTree) -> str:
    """The page docs/results/wang2025.md."""
    epochs = tree.attrs["epochs"]
    iterated = "; more iterations are compared below" if _iterations(tree) else ""
    head = f"""# Do the tables of "Towards Scalable Backpropagation-Free Gradient Estimation" hold?

Written by `python -m studies.wang2025` from its DataTree: do not edit. Wang, Markou & Campbell 2025 (arXiv \
2511.03110): MLP 40-w-w-w-10 (ReLU, no biases), MNIST-1D, AdamW at 1e-4, batch 512, {epochs} epochs, one guess a step. \
Noise is independent for each example, slopes are each example's own (`weight`: one direction and one slope for the \
batch), one pass perturbs all layers; gradients carry 1/512. The paper gives one number a cell. Ours is a mean over \
seeds (initial weights, batches, noise) with its 95 % interval (Student's t). A single run varies more than a mean, \
so the paper's number is looked for in two intervals: that of our mean, and that of one more run.

W̃⊥ is trained with directions from {ITERATIONS} subspace iteration a step, which hold .95 (width 512) to .98 (width \
128) of the leading directions' energy at initialisation{iterated}. k = rank and W̃^P are \
drawn by their law (`RowSpace`), without a decomposition. Cost is in [step_cost](step_cost.md)."""
    done, planned = tree.attrs["trainings"].split(" of ")
    if done != planned:
        head += f"\n\n**Unfinished: {done} of {planned} trainings are done; `--resume-from` goes on with them.**"
    shown = """![Training accuracy by width and over epochs](wang2025_accuracy.png)

Left: bars are 95 % intervals over seeds, crosses what the paper prints. Right: mean over seeds, bands their range."""
    return "\n\n".join([head, shown, text(tree)]) + "\n"


def _single_run(values: Iterable[float]) -> Interval:
    """Mean and half-width of the 95 % interval of one more run: t · s · √(1 + 1/n)."""
    numbers = np.asarray(list(values), dtype=float)
    n = len(numbers)
    if n < 2:
        return Interval(float(numbers.mean()) if n else math.nan, math.nan)
    half = special.stdtrit(n - 1, 0.975) * numbers.std(ddof=1) * math.sqrt(1 + 1 / n)
    return Interval(float(numbers.mean()), float(half))


def _inside(value: float, interval: Interval) -> str:
    if not math.isfinite(interval.half):
        return "–"
    return "yes" if interval.low <= value <= interval.high else ("below" if value < interval.low else "above")


def _compared(values: xr.DataArray, printed: float) -> list[str]:
    """Printed, ours, number of seeds, and whether the one is in the intervals of the other."""
    mean = over_seeds(values.values)
    found = [_inside(printed, mean), _inside(printed, _single_run(values.values))]
    return [f"{printed:.3f}", str(mean), str(len(values)), *found]


HEADER = ("paper", "ours", "seeds", "paper in our mean's interval", "in one more run's")


def _table_3(tree: xr.DataTree) -> str:
    rows = []
    for index, width in enumerate(WIDTHS):
        for method, printed in TABLE_3.items():
            values = final(tree, method, width)
            if len(values):
                rows.append([str(width), NAMES[method], *_compared(values, printed[index])])
    found = [row for row in rows if row[-1] != "–"]
    inside = sum(row[-1] == "yes" for row in found)
    lines = [f"## Table 3: training accuracy after {tree.attrs['epochs']} epochs", ""]
    if tree.attrs["epochs"] != 300:
        lines += ["The paper trains for 300 epochs: its numbers must be higher than these.", ""]
    lines += [table(("width", "method", *HEADER), rows), ""]
    lines.append(f"Of {len(found)} cells with an interval, {inside} hold the paper's number in that of one more run.")
    return "\n".join(lines)


def _ordering(tree: xr.DataTree) -> str:
    rows, verdicts = [], []
    for width in WIDTHS:
        signs = []
        for better, worse in ORDER:
            paired = difference(tree, better, worse, width)
            if not math.isfinite(paired.half):
                continue
            own, other = (over_seeds(final(tree, one, width).values) for one in (better, worse))
            apart = "yes" if own.low > other.high else "no"
            said = verb(paired, "better", "worse", "not told apart")
            signs.append(said)
            rows.append([str(width), NAMES[better], NAMES[worse], str(paired), said, apart])
        if len(signs) == len(ORDER):
            verdicts.append((width, all(sign == "better" for sign in signs)))
    if not rows:
        return ""
    header = ("width", "of", "less that of", "difference", "the first is", "intervals of the two means apart")
    lines = ["### The order of the guesses", "", "Differences of training accuracy, seed by seed.", ""]
    lines += [table(header, rows), ""]
    holds = [width for width, sign in verdicts if sign]
    fails = [width for width, sign in verdicts if not sign]
    if holds:
        lines.append(f"Seed by seed, W̃⊥ (k = 10) above W̃ᵀ above activity perturbation holds at width {listed(holds)}.")
    if fails:
        lines.append(f"Not so, for a difference includes zero or is reversed, at width {listed(fails)}.")
    return "\n\n".join(["\n".join(lines), *(_apart(tree, width) for width in JUDGED)])


def _apart(tree: xr.DataTree, width: int) -> str:
    """Whether the three intervals of means are apart in the order of table 3, and for each pair that is not, why."""
    begin = f"At width {width}, after {tree.attrs['epochs']} epochs, the ordering of table 3"
    reasons = []
    for better, worse in ORDER:
        paired = difference(tree, better, worse, width)
        if not math.isfinite(paired.half):
            return f"{begin} is not judged: it takes two seeds that {NAMES[better]} and {NAMES[worse]} have in common."
        values = [final(tree, one, width) for one in (better, worse)]
        own, other = (over_seeds(one.values) for one in values)
        if own.low <= other.high:
            spreads = [f"{float(one.std(ddof=1)):.3f} ({len(one)} seeds)" for one in values]
            reasons.append(
                f"- {NAMES[better]} and {NAMES[worse]}: the means differ by {own.mean - other.mean:.3f}, the intervals "
                f"reach {own.half:.3f} and {other.half:.3f}, as seeds have standard deviations of {listed(spreads)}. "
                f"{_in_common(*values)}: seed by seed the difference is {paired}, "
                f"{verb(paired, 'better', 'worse', 'not told apart')}."
            )
    if not reasons:
        return f"{begin} holds with intervals apart for all three pairs."
    return "\n".join([f"{begin} does not hold with intervals apart:", "", *reasons])


def _in_common(one: xr.DataArray, other: xr.DataArray) -> str:
    """How much of the variance between seeds two methods share: what the paired difference is spared of."""
    one, other = xr.align(one, other, join="inner")
    both = float(one.var(ddof=1) + other.var(ddof=1))
    shared = 1 - float((one - other).var(ddof=1)) / both if both else 0.0
    if shared <= 0:
        return "None of that variance is common to both"
    return f"{shared:.0%} of that variance is common to both (a seed's weights and batches)"


def _table_1(tree: xr.DataTree) -> str:
    rows = []
    for method, printed in TABLE_1.items():
        values = final(tree, method, 128)
        if len(values):
            rows.append([NAMES[method], *_compared(values, printed)])
    others = [
        f"{NAMES[method]} {difference(tree, 'orthogonal, k = 10', method, 128)}"
        for method in TABLE_1
        if method != "orthogonal, k = 10" and len(final(tree, method, 128)) > 1
    ]
    closing = f"Training accuracy with k = 10 less that of the others, seed by seed: {'; '.join(others)}."
    return "\n".join(["## Table 1: how many directions, width 128", "", table(("method", *HEADER), rows), "", closing])


def _metric(tree: xr.DataTree, method: str, width: int, guess: str, layer: int, name: str) -> xr.DataArray:
    """One number a seed; empty where no cell has it."""
    metrics = tree["metrics"].to_dataset()
    if (
        method not in metrics["trained_by"].values
        or width not in metrics["width"].values
        or guess not in metrics["guess_kind"].values
        or name not in metrics
    ):
        return xr.DataArray(np.empty(0), dims="seed")
    return metrics[name].sel(trained_by=method, width=width, guess_kind=guess, layer=layer).dropna("seed")


def _shown(values: xr.DataArray) -> str:
    return scientific(over_seeds(values.values)) if len(values) else "–"


def _table_2(tree: xr.DataTree) -> str:
    rows, layers = [], (1, 2, 3)
    for guess, printed in TABLE_2.items():
        for (name, rounding), value in zip(METRICS.items(), printed, strict=True):
            found = [_metric(tree, "orthogonal, k = 10", 128, guess, layer, name) for layer in layers]
            runs = [_single_run(one.values) for one in found]
            verdicts = [_inside(value, Interval(run.mean, run.half + rounding)) for run in runs]
            inside = [layer for layer, verdict in zip(layers, verdicts, strict=True) if verdict == "yes"]
            said = "–" if set(verdicts) == {"–"} else (listed(inside) if inside else "none")
            rows.append([guess, name.replace("_", " "), f"{value:.2e}", *map(_shown, found), said])
    lines = [
        "## Table 2: variance and bias as the paper defines them, width 128",
        "",
        "`wang2025_variance` ((loss per unit of activation)²) and `wang2025_bias` (loss per unit of activation), "
        f"sampled with {METRIC_GUESSES} guesses on networks trained by W̃⊥ (k = 10), after the last epoch. The paper "
        "says neither layer nor epoch, nor what the network was trained by; gradients change as training goes on; "
        "`python -m studies.facts` finds its layer 1 after some hundred epochs of backpropagation. The last "
        "column says in which layers the paper's number is in the interval of one more run. The covariance norm is "
        "predicted from the trained weights, where the cell kept it (–: it did not); that of W̃⊥ with k directions of d "
        f"is √(d − k)/d = {math.sqrt(128 - 10) / 128:.3f} whatever the weights.",
        "",
        table(
            ("guess", "metric", "paper", *(f"layer {layer}" for layer in layers), "paper in one more run's of layer"),
            rows,
        ),
    ]
    return "\n".join(lines)


def _table_5(tree: xr.DataTree) -> str:
    rows = []
    for method, (guess, variance, bias, train, test) in TABLE_5.items():
        if not len(final(tree, method, 256)):
            continue
        for name, printed in (("variance", variance), ("bias", bias)):
            found = _metric(tree, method, 256, guess, 1, name)
            inside = [_inside(printed, interval(found.values)) for interval in (over_seeds, _single_run)]
            rows.append([NAMES[method], name, f"{printed:.2e}", _shown(found), *inside])
        for name, printed in (("train_accuracy", train), ("test_accuracy", test)):
            values = final(tree, method, 256, name)
            printed_text, ours, _, mean, single = _compared(values, printed)
            rows.append([NAMES[method], name.replace("_", " "), printed_text, ours, mean, single])
    header = ("trained and guessed by", "", "paper", "ours", "paper in our mean's interval", "in one more run's")
    lines = ["## Table 5: width 256, layer 1, after the last epoch", "", table(header, rows), ""]
    lines.append(
        "W̃^P has no bias at all: what the paper prints for it is rounding, and what is sampled here is what is left of "
        "zero. Here it is as the paper computes it, with the directions of zero singular values (dead units): by its "
        "law it is plain activity perturbation in layers 1 and 2; layer 3 differs, where the ten output units leave "
        "ten directions instead of 256. The estimator `preconditioned` drops those directions, which the Jacobian does "
        "not determine, and has the law of W̃⊥ with k = rank; its variance is about half of this, which is not the "
        "paper's."
    )
    gain = difference(tree, "preconditioned", "activity", 256)
    if math.isfinite(gain.half):
        lines.append(f"Its training accuracy less that of activity perturbation, seed by seed: {gain}.")
    return "\n".join(lines)


def _figure_1(tree: xr.DataTree) -> str:
    jacobian = tree["jacobian"].to_dataset()
    rows = []
    for width in jacobian["width"].values:
        for method in ("orthogonal, k = 10", "upstream", "backpropagation"):
            if method not in jacobian["trained_by"].values:
                continue
            for layer in (1, 2):
                own = jacobian.sel(width=width, trained_by=method, layer=layer)
                if not np.isfinite(own["overlap"]).any():
                    continue
                row = [str(width), NAMES[method], str(layer)]
                for name, printed in zip(JACOBIAN, (RANKS, OVERLAPS, None), strict=True):
                    before, after = (own[name].sel(when=when).dropna("seed").values for when in ("before", "after"))
                    cells = [str(over_seeds(before)), str(over_seeds(after))]
                    if printed is not None:
                        known = method == "orthogonal, k = 10" and int(width) in printed
                        value = printed[int(width)][layer - 1] if known else math.nan
                        paper = [f"{value:g}", _inside(value, _single_run(after))] if known else ["–", "–"]
                        cells = [paper[0], *cells, paper[1]]
                    row += cells
                rows.append(row)
    header = (
        "width", "trained by", "layer", "rank: paper", "before", "after", "paper in one more run's",
        "overlap: paper", "before", "after", "paper in one more run's", "squared: before", "after",
    )  # fmt: skip
    lines = [
        "## Figure 1: rank of the upstream Jacobian, and the gradient's overlap with ten of its directions",
        "",
        "![Overlap before and after training](wang2025_overlap.png)",
        "",
        "Mean over examples of rank and of ‖V₁₀ᵀg‖/‖g‖, exact decompositions, 95 % intervals over seeds. Layer 3 has "
        "rank 10 and overlap 1 by construction. Random directions would have a squared overlap of 10 over the rank. "
        "The paper prints the unsquared number, for networks trained by W̃⊥ itself: there its numbers are looked for in "
        "the interval of one more run.",
        "",
        table(header, rows),
    ]
    return "\n".join(lines)


def _iterations(tree: xr.DataTree) -> str:
    paired = difference(tree, "orthogonal, k = 10, iterated", "orthogonal, k = 10", 128)
    if not math.isfinite(paired.half):
        return ""
    return (
        "## Does the cheap decomposition matter?\n\nAt width 128, training accuracy with 4 subspace iterations a step "
        f"less that with {ITERATIONS}, seed by seed: {paired}."
    )


def _accuracy_figure(tree: xr.DataTree) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn
    from matplotlib.lines import Line2D

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    training = tree["training"].to_dataset()
    colours = dict(zip(TABLE_3, seaborn.color_palette("colorblind", len(TABLE_3)), strict=True))
    shown = 128
    for (method, printed), marker in zip(TABLE_3.items(), "os^Dv", strict=True):
        means = {width: over_seeds(final(tree, method, width).values) for width in WIDTHS}
        means = {width: mean for width, mean in means.items() if math.isfinite(mean.mean)}
        halves = [mean.half if math.isfinite(mean.half) else 0.0 for mean in means.values()]
        centres = [mean.mean for mean in means.values()]
        colour = colours[method]
        left.errorbar(
            list(means), centres, yerr=halves, color=colour, marker=marker, ms=4, capsize=2, label=NAMES[method]
        )
        if tree.attrs["epochs"] == 300:
            left.plot(WIDTHS, printed, "x", color=colour, ms=7, mew=1.5)
        if method in training["trained_by"].values and shown in training["width"].values:
            own = training["train_accuracy"].sel(trained_by=method, width=shown).dropna("seed", how="all")
            if own.sizes["seed"]:
                epochs = own["step"] / (own["step"].values[-1] / tree.attrs["epochs"])
                right.plot(epochs, own.mean("seed"), color=colour)
                right.fill_between(epochs, own.min("seed"), own.max("seed"), color=colour, alpha=0.25, lw=0)
    shown_widths = WIDTHS if tree.attrs["epochs"] == 300 else [int(width) for width in training["width"].values]
    left.set(xscale="log", xlabel="width", ylabel="training accuracy", xticks=shown_widths)
    left.set_xticklabels(map(str, shown_widths))
    left.minorticks_off()
    right.set(xlabel="epoch", ylabel="training accuracy", title=f"width {shown}")
    left.set_title(f"after {tree.attrs['epochs']} epochs")
    handles, labels = left.get_legend_handles_labels()
    if tree.attrs["epochs"] == 300:
        handles.append(Line2D([], [], color="0.3", marker="x", ls="", ms=7, mew=1.5))
        labels.append("printed in the paper")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _overlap_figure(tree: xr.DataTree) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    jacobian = tree["jacobian"].to_dataset()
    methods = [m for m in ("backpropagation", "upstream", "orthogonal, k = 10") if m in jacobian["trained_by"].values]
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    colours = seaborn.color_palette("colorblind")
    widths = [int(width) for width in jacobian["width"].values]
    for axes, layer in zip(grid, (1, 2), strict=True):
        for index, method in enumerate(methods):
            for when, style in (("before", "--"), ("after", "-")):
                if when == "before" and index > 0:
                    continue
                own = jacobian["squared_overlap"].sel(trained_by=method, layer=layer, when=when)
                means = [over_seeds(own.sel(width=width).values) for width in widths]
                halves = [mean.half if math.isfinite(mean.half) else 0.0 for mean in means]
                colour = "0.4" if when == "before" else colours[index]
                name = "at initialisation" if when == "before" else f"trained by {NAMES[method]}"
                axes.errorbar(
                    widths, [mean.mean for mean in means], yerr=halves, ls=style, color=colour, marker="o", ms=4,
                    capsize=2, label=name,
                )  # fmt: skip
        ranks = jacobian["jacobian_rank"].sel(layer=layer, when="before").mean(("seed", "trained_by"))
        axes.plot(widths, 10 / ranks, ":", color="black", label="random directions: 10 / rank")
        axes.set(xscale="log", xlabel="width", title=f"layer {layer}", xticks=widths, xticklabels=map(str, widths))
        axes.minorticks_off()
    grid[0].set(ylabel="squared overlap with ten directions", ylim=(0, 1.02))
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure
