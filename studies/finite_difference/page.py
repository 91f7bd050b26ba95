"""The page and the figure of `studies.finite_difference`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit.markdown import capital, listed, scientific, table
from studies.kit.seeds import half_widths, over_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"tanh": "tanh", "relu": "ReLU"}
LOW, HIGH = 2.0**-12, 2.0**-5  # Where orders are read off.
ORDERS = {"one-sided": "1", "central": "2"}


def page(dataset: xr.Dataset) -> str:
    """docs/results/finite_difference.md."""
    attributes, loss = dataset.attrs, over_seeds(dataset["loss"].isel(activation=0))
    kinds = listed(NAMES[str(name)] for name in dataset["activation"].values)
    lines = [
        "# Which ε makes a finite difference best?",
        "",
        "Written by `python -m studies.finite_difference` from its Dataset: do not edit. MLPs 40-"
        f"{attributes['width']}-{attributes['width']}-{attributes['width']}-10 without biases, {kinds}, at "
        f"initialisation, on a batch of {attributes['batch']} examples of MNIST-1D (loss {loss}); weight space, all "
        "layers, one direction z ~ N(0, I) for the batch, one slope. Error: root mean square over "
        f"{attributes['draws']} directions of the slope less z·G, over ‖G‖, which is what z·G itself is like. "
        f"{dataset.sizes['seed']} seeds of weights and directions; intervals are 95 % over them.",
        "",
        "![Slope error over ε](finite_difference_error.png)",
        "",
        "Points are measured, lines predicted: truncation from zᵀHz and T zzz by exact forward mode along other "
        "directions, kinks of ReLU units from their distances, and a rounding error r for each loss.",
        "",
        *_refused(dataset),
        "## The best ε",
        "",
        "From √((a εᵖ)² + (b/ε)²) fitted to the logarithms of the errors within five powers of two of the least one; "
        "the predicted columns are the same fit to the predicted curve.",
        "",
        _best(dataset),
        "",
        *_one_against_two(dataset),
        "## The orders",
        "",
        *_orders(dataset),
        "## The rounding floor",
        "",
        *_rounding(dataset),
        "## How far predictions are off",
        "",
        "Measured error over the predicted one, geometric mean over seeds and ε, and the ε where it is furthest off. "
        "Above: from twice the best ε to 2⁻⁴; below: from half of it to a 64th. Near the nearest kinks of ReLU the "
        "prediction is a mean over all directions, while few of those drawn, or none, meet a kink: what is measured "
        "scatters, mostly below it.",
        "",
        _agreement(dataset),
    ]
    return "\n".join(lines) + "\n"


def _refused(dataset: xr.Dataset) -> list[str]:
    """Whether the estimator refused any step that was tried."""
    least = dataset.attrs["smallest_float32"]
    tried = dataset["slope_error"].sel(dtype="float32").where(dataset["epsilon"] >= 2.0**least, drop=True)
    refused = tried.isnull().any(["seed", "scheme", "activation"])
    if not bool(refused.any()):
        return [f"`FiniteDifference` refused none of the steps, of which the least in float32 is 2^{least}.", ""]
    highest = np.array([float(tried["epsilon"][refused.values].max())])
    return [
        f"In float32 `FiniteDifference` refused steps of {_power(highest)} and below, of one network or more: weights "
        "or losses no longer change.",
        "",
    ]


def _best(dataset: xr.Dataset) -> str:
    rows = []
    for activation, dtype, scheme, own in _cases(dataset):
        measured, predicted = _power(own["best_epsilon"].values), _power(own["best_epsilon_predicted"].values)
        errors = [scientific(over_seeds(own[f"least_error{suffix}"])) for suffix in ("", "_predicted")]
        rows.append([NAMES[activation], dtype, scheme, measured, predicted, *errors])
    header = ["network", "type", "difference", "best ε", "predicted", "error there / ‖G‖", "predicted"]
    return table(header, rows)


def _one_against_two(dataset: xr.Dataset) -> list[str]:
    lines = []
    for activation in dataset["activation"].values:
        for dtype in dataset["dtype"].values:
            own = dataset["least_error"].sel(activation=activation, dtype=dtype)
            ratio = over_seeds(own.sel(scheme="one-sided").values / own.sel(scheme="central").values)
            lines.append(
                f"- {NAMES[str(activation)]}, {dtype}: the one-sided difference's least error is {ratio} times the "
                "central one's."
            )
    return [*lines, ""]


def _orders(dataset: xr.Dataset) -> list[str]:
    """Slopes of log error against log ε in double precision, away from both rounding and large steps."""
    part = dataset.sel(dtype="float64").where((dataset["epsilon"] >= LOW) & (dataset["epsilon"] <= HIGH), drop=True)
    x = np.log(part["epsilon"].values)
    rows = []
    for activation in part["activation"].values:
        for scheme in part["scheme"].values:
            own = part.sel(activation=activation, scheme=scheme)
            found = []
            for name in ("slope_error", "slope_error_predicted"):
                logs = np.log(own[name].transpose("epsilon", "seed").to_numpy())
                found.append(str(over_seeds(np.polyfit(x, logs, 1)[0])))
            rows.append([NAMES[str(activation)], str(scheme), *found, ORDERS[str(scheme)]])
    limits = " to ".join(_power(np.array([limit])) for limit in (LOW, HIGH))
    lines = [
        f"Power of ε that the error grows with from {limits}, in float64:",
        "",
        table(["network", "difference", "measured", "predicted", "smooth loss"], rows),
        "",
    ]
    if "relu" in part["activation"].values:
        relu = dataset["best_epsilon"].sel(activation="relu", scheme="central")
        best = [_power(relu.sel(dtype=dtype).values) for dtype in ("float32", "float64")]
        kinks = _power(dataset["nearest_kink"].sel(activation="relu").values)
        lines += [
            "ReLU's loss has kinks. A step across one is off by a share of the slope that does not vanish with ε, and "
            "the number of kinks in reach falls as ε, so the root mean square error falls as √ε, for central "
            "differences as for one-sided ones. The order of a smooth loss comes back only where ε is below the "
            f"nearest kink, which one standard deviation of z reaches at ε = {kinks}; the best central ε is {best[0]} "
            f"in float32 and {best[1]} in float64.",
            "",
        ]
    return lines


def _rounding(dataset: xr.Dataset) -> list[str]:
    rows = []
    for activation in dataset["activation"].values:
        own = dataset.sel(activation=activation)
        ratio = over_seeds(own["rounding"].values / own["representation"].values)
        rows.append([NAMES[str(activation)], *(scientific(over_seeds(own[n])) for n in ("rounding", "representation"))])
        rows[-1].append(str(ratio))
    return [
        f"r/‖G‖ in float32, from losses at ε = 2^{dataset.attrs['rounding_at']} in two precisions, beside the least "
        "that it can be, the spacing of float32 at the loss over √12. In float64 it is predicted 2⁻²⁹ times that.",
        "",
        table(["network", "r / ‖G‖", "rounding of the loss alone", "ratio"], rows),
        "",
    ]


def _agreement(dataset: xr.Dataset) -> str:
    rows = []
    for activation, dtype, scheme, own in _cases(dataset):
        best = float(np.exp(np.log(own["best_epsilon"]).mean()))
        ratios = (own["slope_error"] / own["slope_error_predicted"]).transpose("seed", "epsilon")
        logs = np.log(ratios.to_numpy())
        epsilon = dataset["epsilon"].values
        cells = []
        for part in ((epsilon >= 2 * best) & (epsilon <= 2.0**-4), (epsilon < best / 2) & (epsilon >= best / 64)):
            chosen = logs[:, part]
            mean = over_seeds(np.nanmean(chosen, axis=1))
            worst = np.nanmean(chosen, axis=0)
            low, high = np.exp(mean.low), np.exp(mean.high)
            index = int(np.nanargmax(np.abs(worst)))
            at = _power(epsilon[part][index : index + 1])
            cells += [f"{np.exp(mean.mean):.3f} ({low:.3f} – {high:.3f})", f"{np.exp(worst[index]):.2f} at {at}"]
        rows.append([NAMES[activation], dtype, scheme, *cells])
    return table(["network", "type", "difference", "above the best ε", "worst", "below it", "worst"], rows)


def _cases(dataset: xr.Dataset) -> list[tuple[str, str, str, xr.Dataset]]:
    return [
        (str(a), str(d), str(s), dataset.sel(activation=a, dtype=d, scheme=s))
        for a in dataset["activation"].values
        for d in dataset["dtype"].values
        for s in dataset["scheme"].values
    ]


def _power(values: NDArray[np.float64]) -> str:
    """2⁻¹²·⁵ with the interval of the exponent."""
    exponents = over_seeds(np.log2(values))
    if not exponents.half > 1e-9:
        whole = exponents.mean == round(exponents.mean)
        return f"2^{exponents.mean:.0f}" if whole else f"2^{exponents.mean:.2f}"
    return f"2^({exponents})"


def figure(dataset: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn
    from matplotlib.lines import Line2D

    activations, dtypes = dataset["activation"].values, dataset["dtype"].values
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        drawn, grid = plt.subplots(
            len(activations),
            len(dtypes),
            figsize=(3.4 * len(dtypes) + 1.2, 2.8 * len(activations) + 0.4),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
    styles = list(zip(dataset["scheme"].values, seaborn.color_palette("colorblind"), ("o", "s"), strict=False))
    for row, activation in enumerate(activations):
        for axes, dtype in zip(grid[row], dtypes, strict=True):
            for scheme, colour, marker in styles:
                own = dataset.sel(activation=activation, dtype=dtype, scheme=scheme).transpose("seed", ...)
                logs = np.log(own["slope_error"].values)
                seen = np.isfinite(logs).all(0)
                middle, half = logs[:, seen].mean(0), half_widths(logs[:, seen], 0)
                value = np.exp(middle)
                bars = [value - np.exp(middle - half), np.exp(middle + half) - value]
                x = dataset["epsilon"].values
                axes.errorbar(x[seen], value, yerr=bars, ls="", marker=marker, ms=3.5, mfc="none", color=colour, lw=1)
                predicted = np.exp(np.log(own["slope_error_predicted"].values).mean(0))
                axes.plot(x[seen], predicted[seen], color=colour, lw=1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(f"{NAMES[str(activation)]}, {dtype}", fontsize=9)
    drawn.supxlabel("ε, step [units of weight]", fontsize=10)
    drawn.supylabel("root mean square error of the slope / ‖G‖ [1]", fontsize=10)
    handles = [Line2D([], [], color=c, marker=m, mfc="none", label=capital(str(s))) for s, c, m in styles]
    drawn.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=8, title="marks: measured\nlines: predicted"
    )
    return drawn
