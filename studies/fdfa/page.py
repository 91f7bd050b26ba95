"""The page of `studies.fdfa`, from its DataTree alone."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from scipy import special

from fganalysis.statistics.intervals import Z95
from studies.fdfa.training import ACTIVITY, FDFA, WEIGHT
from studies.kit.markdown import listed, table, verb
from studies.kit.seeds import Interval, over_seeds

SHOWN: dict[str, object] = {"space": "weight", "layer": "hidden"}
OTHERS = ("weight", "activity")
ROUNDING = 1e-12  # A predicted term below is zero, over the squared gradient norm.


def page(tree: xr.DataTree) -> str:
    """docs/results/fdfa.md."""
    variance, training = tree["variance"].to_dataset(), tree["training"].to_dataset()
    parts = [_head(variance), _line(variance), _terms(variance), _compared(variance), _trained(training)]
    return "\n\n".join([*parts, _claims(variance, training)]) + "\n"


def _head(variance: xr.Dataset) -> str:
    layers = [str(layer) for layer in variance["layer"].values[:-1]]
    return "\n".join(
        [
            "# Does learned feedback (FDFA) lower the variance of forward gradients, what is its bias, and does it "
            "train better?",
            "",
            "Written by `python -m studies.fdfa` from its Dataset: do not edit. Bacho & Chu (2023, arXiv 2212.07282) "
            f"on {variance.attrs['dataset']}: an MLP with two hidden ReLU layers and biases, at its initial weights "
            f"and after backpropagation, {variance.attrs['examples']} examples, mean cross-entropy. Intervals are "
            f"95 %, over {variance.attrs['histories']} independent histories of the feedback matrices on one network "
            "of each width.",
            "",
            "What is compared, all in one joint pass with noise independent over examples:",
            "",
            "- FDFA: ĝ = φ' ⊙ (Bᵀe), B ← (1−α)B + α·mean_b(d_b u_bᵀ), B = 0 at first; u ~ N(0, I) behind φ at the "
            "hidden layers;",
            "- pooled: the same with α = 1, a single step: the activity-perturbed gradient that the matrices average, "
            "over all examples of the batch at once;",
            "- activity perturbation: noise at every pre-activation, the output's too; a slope for each example;",
            "- weight perturbation: one direction for all weights and the batch.",
            "",
            f"Only the hidden layers (taps {listed(layers)}; `hidden` is their sum) are looked at: at the output FDFA "
            "has the exact error.",
        ]
    )


def _line(variance: xr.Dataset) -> str:
    """α/(2−α)."""
    ratio, error = variance["ratio"], variance["ratio_se"]
    z = ((ratio - 1) / error).values
    z = z[np.isfinite(z)]
    beyond, chance = int((np.abs(z) > 3).sum()), len(z) * 2 * float(special.ndtr(-3.0))
    rows = []
    for width in variance["width"].values:
        for stage in variance["stage"].values:
            for rate in variance["rate"].values:
                own = {"width": width, "stage": stage, "rate": rate}
                if not np.isfinite(ratio.sel(own | SHOWN)):
                    continue
                cells = [str(width), str(stage), f"{rate:g}"]
                for space in variance["space"].values:
                    for layer in variance["layer"].values:
                        where = own | {"space": space, "layer": layer}
                        cells.append(str(Interval(float(ratio.sel(where)), Z95 * float(error.sel(where)))))
                rows.append(cells)
    header = ["width", "weights", "α"]
    header += [f"{space}, {layer}" for space in variance["space"].values for layer in variance["layer"].values]
    verdict = "every one of them" if beyond == 0 else f"{len(z) - beyond} of them"
    return "\n".join(
        [
            "## The stationary variance is α/(2−α) times the activity-perturbed one",
            "",
            f"Measured variance after α·step = {float(variance['time'][-1]):g} over α/(2−α) times the measured pooled "
            f"one, by space and layer: {len(z)} ratios, {verdict} within 3 standard errors of 1 (beyond by chance: "
            f"{chance:.1f}); largest |z| {np.abs(z).max():.2f}, standard errors up to "
            f"{100 * float(np.nanmax(error.values)):.1f} %.",
            "",
            table(header, rows),
            "",
            "![Measured over expected stationary variance, with three standard errors](fdfa_ratio.png)",
        ]
    )


def _terms(variance: xr.Dataset) -> str:
    """The three terms at the last mark that was reached, at the width where all rates are looked at."""
    own = variance.sel(width=variance.attrs["width"])
    rows: list[list[str]] = []
    for stage in own["stage"].values:
        for layer in own["layer"].values[:-1]:
            for rate in own["rate"].values:
                point = own.sel(stage=stage, rate=rate, space="weight", layer=layer)
                reached = np.flatnonzero(np.isfinite(point["variance"].values))
                point = point.isel(time=int(reached[-1]))
                cells = [str(stage), str(layer), f"{rate:g}", f"{int(point['step'])}"]
                cells += [_beside(point, name) for name in ("variance", "lag", "spread", "mse")]
                rows.append(cells)
    header = ["weights", "layer", "α", "step", "variance", "squared lag", "squared spread", "mean squared error"]
    z = _z(variance)
    return "\n".join(
        [
            "## Variance, lag and spread over the history",
            "",
            f"Width {variance.attrs['width']}, weight space, each over the layer's squared "
            "gradient norm: measured ± interval (predicted by MATH.md §6, `theory.feedback`), at the last step "
            "measured. Variance, squared lag, squared spread and twice the inner product of lag and spread add up to "
            "the mean squared error.",
            "",
            table(header, rows),
            "",
            "![Variance, squared lag, squared spread and mean squared error over the step](fdfa_terms.png)",
            "",
            "Lines are predicted, points measured; a point whose interval reaches zero has no place on the axis. The "
            "last hidden layer has no spread: its output Jacobian is the last weight matrix for every example. Below "
            "it the Jacobian differs between examples, and that bias stays however long the history.",
            "",
            f"Over all widths, rates, marks, layers and both spaces, (measured − predicted)/standard error: {z}.",
            "",
            "![Efficiency of FDFA over the step, beside weight and activity perturbation](fdfa_efficiency.png)",
            "",
            "Efficiency is the fraction of the exact step's progress that a guess makes at its best step size. From "
            "B = 0 the mean guess is (1−(1−α)ᵗ)(g + spread): at frozen weights the lag is a matter of length alone, "
            "and until α·step reaches 1 every rate averages the whole history alike.",
        ]
    )


def _z(variance: xr.Dataset) -> str:
    found = []
    for name in ("variance", "lag", "spread", "mse", "efficiency"):
        z = ((variance[name] - variance[f"{name}_predicted"]) / variance[f"{name}_se"]).values
        z = z[np.isfinite(z)]
        found.append(f"{name} {len(z)} compared, largest {np.abs(z).max():.2f}, rms {np.sqrt((z**2).mean()):.2f}")
    return "; ".join(found)


def _beside(point: xr.Dataset, name: str) -> str:
    scale = float(point["squared_gradient"])
    value, error, predicted = (float(point[one]) / scale for one in (name, f"{name}_se", f"{name}_predicted"))
    return f"{Interval(value, Z95 * error)} ({predicted if predicted > ROUNDING else 0:.3g})"


def _compared(variance: xr.Dataset) -> str:
    """Against weight and activity perturbation over the width."""
    rows = []
    rates = swept(variance)
    for stage in variance["stage"].values:
        for width in variance["width"].values:
            own = variance.sel(SHOWN | {"stage": stage, "width": width})
            cells = [str(stage), str(width)]
            cells += [_beside(own, f"{name}_variance") for name in OTHERS]
            cells += [_beside(own.sel(rate=rate).isel(time=-1), "variance") for rate in rates]
            cells.append(_beside(own, "spread"))
            cells.append(f"{_guesses_needed(own, rates[-1]):.0f}")
            rows.append(cells)
    header = ["weights", "width", "weight perturbation", "activity perturbation"]
    header += [*(f"FDFA, α = {rate:g}" for rate in rates), "its squared spread", f"guesses equal to α = {rates[-1]:g}"]
    return "\n".join(
        [
            "## Against weight- and activity-perturbed forward gradients",
            "",
            "Total variance of one guess in the stationary state over the squared gradient norm, weight space, both "
            "hidden layers together: measured ± interval (predicted). Weight and activity perturbation are unbiased; "
            "FDFA keeps its spread, and is no guess from one pass: its history holds the noise of about (2−α)/α steps, "
            "each averaged over the batch. The last column: how many guesses of activity perturbation averaged have "
            "the mean squared error of FDFA, by the measured numbers.",
            "",
            table(header, rows),
            "",
            "![Variance over the width, before and after training](fdfa_width.png)",
        ]
    )


def _guesses_needed(own: xr.Dataset, rate: float) -> float:
    return float(own["activity_variance"] / own["mse"].sel(rate=rate).isel(time=-1))


def swept(variance: xr.Dataset) -> list[float]:
    """The rates that are looked at in the stationary state at every width, the largest first."""
    everywhere = variance["ratio"].sel(SHOWN).notnull().all(["width", "stage"])
    return [float(rate) for rate in variance["rate"].values[everywhere.values]]


def _trained(training: xr.Dataset) -> str:
    rows = []
    for name in training["gradient"].values:
        own = training.sel(gradient=name)
        last = own.isel(step=-1)
        rate = f"{float(own['learning_rate']):g}" + (" (edge)" if int(own["at_edge"]) else "")
        cosine = over_seeds(own["cosine"].isel(step=slice(1, -1)).mean("step"))
        results = [over_seeds(last[one]) for one in ("loss", "train_accuracy", "test_accuracy")]
        rows.append([str(name), rate, *map(str, results), str(cosine)])
    header = ["gradient", "learning rate", "training loss", "training accuracy", "test accuracy", "cosine"]
    attrs = training.attrs
    return "\n".join(
        [
            "## Training by each",
            "",
            f"{attrs['dataset']}, width {attrs['width']}, {attrs['epochs']} epochs of batches of {attrs['batch']}, "
            f"Adam on the weights, one guess a step; mean over {training.sizes['seed']} seeds with 95 % intervals "
            "(Student). The learning rate is the one with the smallest training loss on a further seed; (edge): the "
            "smallest or largest that was tried. Cosine: of a step's guess with the exact gradient, all layers in "
            "weight space, mean over the epochs' first steps after the first. `FDFA by Adam`: the matrices follow "
            f"Adam at rate {attrs['adam_rate']:g}, the rule of the paper's public code.",
            "",
            table(header, rows),
            "",
            "![Loss and test accuracy over the step](fdfa_training.png)",
            "",
            _differences(training),
        ]
    )


def _differences(training: xr.Dataset) -> str:
    """Test accuracy against activity perturbation, direct feedback and backpropagation, paired by seed."""
    learned = best_learned(training)
    lines = []
    for other in (ACTIVITY, "direct feedback", "backpropagation"):
        difference = accuracy_gain(training, learned, other)
        word = verb(difference, "more than", "less than", "not told apart from")
        lines.append(f"{difference} ({word} {other})")
    return (
        f"Test accuracy of {learned}, which has the smallest training loss of FDFA's, minus that of the others, paired "
        f"by seed: {'; '.join(lines)}."
    )


def best_learned(training: xr.Dataset) -> str:
    """The kind of FDFA with the smallest training loss; test accuracy is not what it is chosen by."""
    names = [str(name) for name in training["gradient"].values if str(name).startswith(FDFA.split(",")[0])]
    means = training["loss"].isel(step=-1).mean("seed").sel(gradient=names)
    return names[int(np.argmin(means.values))]


def accuracy_gain(training: xr.Dataset, one: str, other: str) -> Interval:
    last = training["test_accuracy"].isel(step=-1)
    return over_seeds(last.sel(gradient=one) - last.sel(gradient=other))


def _claims(variance: xr.Dataset, training: xr.Dataset) -> str:
    rows = []
    for name in OTHERS:
        below, ranges = True, []
        for rate in swept(variance):
            own = variance.sel(SHOWN | {"rate": rate}).isel(time=-1)
            ratio = own["variance"] / own[f"{name}_variance"]
            errors = ((own["variance_se"] / own["variance"]) ** 2) + (
                own[f"{name}_variance_se"] / own[f"{name}_variance"]
            ) ** 2
            below = below and bool((ratio + Z95 * ratio * errors**0.5 < 1).all())
            ranges.append(f"{float(ratio.min()):.2g} to {float(ratio.max()):.2g} at α = {rate:g}")
        words = f"lower variance than {name}-perturbed forward gradients"
        rows.append([words, f"ratio {', '.join(ranges)}", "yes, at every width" if below else "not at every width"])
    smallest = float(variance["rate"].min())
    own = variance.sel(SHOWN | {"width": variance.attrs["width"], "rate": smallest})
    relative = [float(value) for value in own["stationary_variance_predicted"] / own["squared_gradient"]]
    spread = [float(value) for value in own["spread_predicted"] / own["squared_gradient"]]
    of_bias = ": what is left of the error is bias" if max(relative) < 0.1 * min(spread) else ""
    steps = math.log(0.1) / math.log(1 - smallest)
    learned = best_learned(training)
    for other in (WEIGHT, ACTIVITY, "direct feedback"):
        gain = accuracy_gain(training, learned, other)
        trains = verb(gain, "yes", "no, worse", "not told apart")
        ours = f"{gain} test accuracy above it ({learned})"
        rows.append([f"trains better than {other}", ours, f"{trains}, on {training.attrs['dataset']}"])
    return "\n".join(
        [
            "## The paper's claims beside ours",
            "",
            table(["claim", "ours (weight space, hidden layers)", "holds?"], rows),
            "",
            "The paper prints accuracies of wider networks with BatchNorm on larger images, which are not repeated "
            f"here. At α = {smallest:g}, the smallest rate here, the stationary variance is predicted to be "
            f"{listed(f'{value:.2g}' for value in relative)} of the squared gradient norm "
            f"({listed(str(stage) for stage in variance['stage'].values)} weights, width {variance.attrs['width']}), "
            f"beside a squared spread of {listed(f'{value:.2g}' for value in spread)}{of_bias}. The history is long: "
            f"{steps:.0f} steps at frozen weights until a hundredth of the squared lag is left. FDFA trades variance "
            "for lag and for the spread of the Jacobian over examples.",
        ]
    )
