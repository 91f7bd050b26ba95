"""The page and the figures of `studies.averaging`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis import schema
from studies.markdown import listed, table
from studies.seed_intervals import half_widths, over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "h")
ROUNDING = 2e-5  # Relative, of sums in single precision: what varies less is not compared.
MOST = 1e6  # Guesses to which the predicted curves are drawn.


def page(dataset: xr.Dataset) -> str:
    """docs/results/averaging.md."""
    attributes, largest = dataset.attrs, int(dataset["averaged"][-1])
    lines = [
        "# How does the error fall with the guesses that are averaged, and how many reach a given cosine?",
        "",
        "Written by `python -m studies.averaging` from its Dataset: do not edit. MLPs 40-w-w-w-10 without biases on "
        f"MNIST-1D, w = {listed(dataset['width'].values)}, at initialisation and after {attributes['epochs']} epochs "
        f"of backpropagation (AdamW, batch 512); gradients of one batch of {attributes['batch']} examples. "
        f"{dataset.sizes['seed']} seeds of weights and noise; {attributes['guesses']} guesses of each estimator, "
        f"network and step, cut into groups of m up to {largest}. Noise is independent for each example, slopes are "
        "each example's own and one pass perturbs all layers, but for `weight` (one direction for the batch, one "
        "slope), `activity, a pass a layer` (four passes a guess) and `minibatch of 16` (no perturbation at all: "
        "16 rows of the batch, backpropagated). All layers together; every layer is in the Dataset.",
        "",
        "Intervals are 95 % over seeds, of logarithms where the number is an error or a count of guesses.",
        "",
        "## Error against the number of guesses",
        "",
        "![Squared error over m](averaging_error.png)",
        "",
        "Weight space. Squared error of the mean of m guesses over the squared gradient norm; lines are bias² + V/m as "
        "predicted, flat where the bias is reached. An estimate is worse than none at all above 1.",
        "",
        *_agreement(dataset),
        "## Cosine against the number of guesses",
        "",
        "![Cosine over m](averaging_cosine.png)",
        "",
        "Weight space. Lines are √ρ²_m as predicted, drawn on beyond the largest m that was measured; the level that "
        "a line ends at is the cosine of the mean guess.",
        "",
        "## How many guesses does a cosine take?",
        "",
        *_verdicts(dataset),
    ]
    lines += _changes(dataset)
    for space in ("weight", "activation"):
        for trained in dataset["trained"].values:
            own = dataset.sel(space=space, trained=trained, layer=schema.ALL_LAYERS)
            lines += [f"### {space} space, {trained}", "", _needed(own), ""]
    lines += [
        "Measured (95 % interval) | predicted. `*`: beyond the largest group, extrapolated from ceiling, variance and "
        "mean as measured. `never`: the ceiling is below in every seed; otherwise the seeds are counted.",
    ]
    return "\n".join(lines) + "\n"


def _agreement(dataset: xr.Dataset) -> list[str]:
    """How far measured errors are from predicted ones, and cosines from √ρ², over all cells, spaces and layers."""
    rows = []
    for m in dataset["averaged"].values:
        own = dataset.sel(averaged=m)
        difference = (own["relative_error"] - own["relative_error_predicted"]).values.ravel()
        error = own["relative_error_se"].values.ravel()
        seen = (
            error > ROUNDING * own["relative_error_predicted"].transpose(*own["relative_error_se"].dims).values.ravel()
        )
        z = np.abs(difference[seen] / error[seen])
        off = (own["cosine"] / own["cosine_predicted"]).sel(layer=schema.ALL_LAYERS, space="weight")
        ratios = [
            str(over_seeds(off.sel(guess_kind=name).mean(["width", "trained"]))) for name in off["guess_kind"].values
        ]
        rows.append([str(m), str(len(z)), f"{(z > 2).mean():.1%}", f"{(z > 3).mean():.1%}", f"{z.max():.1f}", *ratios])
    groups = dataset.attrs["guesses"] // int(dataset["averaged"][-1])
    header = ["m", "errors compared", "abs(z) > 2", "abs(z) > 3", "largest", *map(str, dataset["guess_kind"].values)]
    return [
        "Measured errors against predicted ones over every width, step, seed, space and layer, z = (measured − "
        "predicted)/standard error (chance gives 4.6 % and 0.3 %, and more than that where there are few groups: "
        f"{groups} at the largest m; the layers of one guess are not independent); and, by estimator, the measured "
        "mean cosine over √ρ²_m in weight space, which is 1 where norms do not vary:",
        "",
        table(header, rows),
        "",
    ]


def _verdicts(dataset: xr.Dataset) -> list[str]:
    """One sentence an estimator, from the predicted ceilings in weight space."""
    own = dataset.sel(space="weight", layer=schema.ALL_LAYERS)
    lines = []
    for name in own["guess_kind"].values:
        ceilings = np.sqrt(own["squared_ceiling_predicted"].sel(guess_kind=name).values.ravel())
        low, high = ceilings.min(), ceilings.max()
        reach = (
            "exactly unbiased, so that any cosine can be bought"
            if low > 1 - 1e-6
            else (f"the cosine of the mean lies between {low:.2f} and {high:.2f} over widths, steps and seeds")
        )
        lines.append(f"- {name}: {reach}.")
    return [*lines, ""]


def _changes(dataset: xr.Dataset) -> list[str]:
    """What training and width do to the number of guesses, measured, in weight space."""
    target = float(dataset["target"][dataset.sizes["target"] // 2])
    needed = dataset["needed"].sel(space="weight", layer=schema.ALL_LAYERS, target=target)
    rows = []
    for name in needed["guess_kind"].values:
        own = needed.sel(guess_kind=name).transpose("width", "trained", "seed").values
        by_training = [_factor(own[w, 1], own[w, 0]) for w in range(len(own))]
        by_width = [_factor(own[-1, t], own[0, t]) for t in range(own.shape[1])]
        rows.append([str(name), *by_training, *by_width])
    widths, steps = needed["width"].values, [str(step) for step in needed["trained"].values]
    header = ["guess", *(f"{steps[1]} / {steps[0]}, width {width}" for width in widths)]
    header += [f"width {widths[-1]} / {widths[0]}, {step}" for step in steps]
    return [
        f"By which factor training and width change the number of guesses for a cosine of {target:g}, measured, weight "
        "space:",
        "",
        table(header, rows),
        "",
    ]


def _factor(counts: NDArray[np.float64], others: NDArray[np.float64]) -> str:
    """Geometric mean over seeds of the ratio, where every count is known and finite."""
    if not (np.isfinite(counts).all() and np.isfinite(others).all()):
        return "–"
    logs = over_seeds(np.log(counts / others))
    return f"{np.exp(logs.mean):.2g} ({np.exp(logs.low):.2g} – {np.exp(logs.high):.2g})"


def _needed(own: xr.Dataset) -> str:
    rows = []
    for name in own["guess_kind"].values:
        for width in own["width"].values:
            point = own.sel(guess_kind=name, width=width)
            if np.isnan(point["relative_error"].values).all():
                continue
            ceiling = over_seeds(np.sqrt(np.clip(point["squared_ceiling"].values, 0, None)))
            known = float(np.sqrt(point["squared_ceiling_predicted"]).mean())
            cells = [str(name), str(width), f"{ceiling} \\| {known:.3f}"]
            for target in own["target"].values:
                one = point.sel(target=target)
                star = "*" if bool(one["extrapolated"].any()) else ""
                measured, predicted = _count(one["needed"].values, star), _count(one["needed_predicted"].values, "")
                cells.append(f"{measured} \\| {predicted.split(' (')[0]}")
            rows.append(cells)
    return table(["guess", "width", "ceiling", *(f"cosine {target:g}" for target in own["target"].values)], rows)


def _count(needed: NDArray[np.float64], star: str) -> str:
    """Geometric mean over seeds with its interval; "never" where no number of guesses will do."""
    known = needed[~np.isnan(needed)]
    never = int(np.isinf(known).sum())
    if not len(known):
        return "unclear"
    if never == len(needed):
        return "never"
    if never or len(known) < len(needed):
        finite = known[np.isfinite(known)]
        words = [f"never in {never}"] if never else []
        words += [f"unclear in {len(needed) - len(known)}"] if len(known) < len(needed) else []
        typical = f"{_rounded(float(np.exp(np.log(finite).mean())))}{star}; " if len(finite) else ""
        return f"{typical}{' and '.join(words)} of {len(needed)} seeds"
    logs = over_seeds(np.log(known))
    if not logs.half > 1e-9:
        return _rounded(float(np.exp(logs.mean))) + star
    low, high = (_rounded(float(np.exp(end))) for end in (logs.low, logs.high))
    return f"{_rounded(float(np.exp(logs.mean)))}{star} ({low} – {high})"


def _rounded(number: float) -> str:
    """Three digits, thousands set apart."""
    if number < 100:
        return f"{number:.3g}"
    power = 10 ** (int(np.log10(number)) - 2)
    return f"{round(number / power) * power:,}".replace(",", " ")


def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    return {"error": _panels(dataset, "relative_error"), "cosine": _panels(dataset, "cosine")}


def _panels(dataset: xr.Dataset, name: str) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn
    from matplotlib.lines import Line2D

    own = dataset.sel(space="weight", layer=schema.ALL_LAYERS)
    widths, steps = own["width"].values, own["trained"].values
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(
            len(steps),
            len(widths),
            figsize=(1.6 * len(widths) + 1.6, 1.6 * len(steps) + 0.4),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
    kinds = [str(kind) for kind in own["guess_kind"].values]
    styles = list(zip(kinds, seaborn.color_palette("colorblind", len(kinds)), MARKERS, strict=False))
    for row, trained in enumerate(steps):
        for axes, width in zip(grid[row], widths, strict=True):
            for kind, colour, marker in styles:
                _curve(axes, own.sel(width=width, trained=trained, guess_kind=kind), name, colour, marker)
            axes.set(xscale="log", title=f"width {width}, {trained}")
            axes.title.set_fontsize(8)
            if name == "relative_error":
                axes.set_yscale("log")
            else:
                axes.set_ylim(0, 1.02)
                axes.set_yticks([0, *dataset["target"].values, 1])
    figure.supxlabel("m, guesses averaged [1]", fontsize=10)
    figure.supylabel(
        f"{'squared error / ‖G‖²' if name == 'relative_error' else 'cosine'}, weight space [1]", fontsize=10
    )
    handles = [Line2D([], [], color=c, marker=m, mfc="none", label=kind) for kind, c, m in styles]
    figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=8, title="marks: measured\nlines: predicted"
    )
    return figure


def _curve(axes: Axes, own: xr.Dataset, name: str, colour: Any, marker: str) -> None:
    """Means over seeds, geometric ones of errors, with their intervals, and the mean of the predicted curves."""
    sizes = own["averaged"].values
    end = sizes[-1] if name == "relative_error" else MOST
    m = np.geomspace(1, end, 60)
    bias, variance, square, ceiling = (
        own[f"{source}_predicted"].values[:, None]
        for source in ("relative_squared_bias", "relative_variance", "relative_squared_mean", "squared_ceiling")
    )
    curves = bias + variance / m if name == "relative_error" else np.sqrt(ceiling / (1 + variance / square / m))
    values = own[name].transpose("seed", "averaged").to_numpy()
    if name == "cosine":
        axes.plot(m, curves.mean(0), color=colour, lw=1)
        middle, half = values.mean(0), half_widths(values, 0)
        low, high = middle - half, middle + half
    else:
        axes.plot(m, np.exp(np.log(curves).mean(0)), color=colour, lw=1)
        centre, half = np.log(values).mean(0), half_widths(np.log(values), 0)
        low, middle, high = (np.exp(centre + side * half) for side in (-1, 0, 1))
    bars = [middle - low, high - middle]
    axes.errorbar(sizes, middle, yerr=bars, ls="", marker=marker, ms=3.5, mfc="none", color=colour, lw=1)
