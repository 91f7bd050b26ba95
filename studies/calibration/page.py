"""The page of `studies.calibration`, from its result alone."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special, stats

from fganalysis.assertions.error_blocks import BLOCKS, FIRST_BLOCK, GROWTH
from fganalysis.results import schema
from fganalysis.statistics.intervals import ENOUGH
from studies.calibration.cells import COUNTED, LEVELS, REPEATS_OF_PARTS
from studies.calibration.estimators import ESTIMATORS, HARD, HEAVY, TAILS
from studies.kit.markdown import table

Array = NDArray[np.float64]
FIRST_VERDICT = round(FIRST_BLOCK * (1 + GROWTH)) * BLOCKS  # Guesses at the second look.
WANTED = (0.935, 0.965)
MOST_MISSING = 0.1  # Of the samples: cells with more have no coverage to speak of.
Z_SHOWN = ("squared_bias", "shrinkage", "variance", "mse", "cosine", "efficiency", "best_scale", "wang2025_variance")


def cells(tree: xr.DataTree) -> xr.Dataset:
    """One row a (guesses, estimator, quantity, space, layer): coverage, its binomial interval, and what to make of it.

    ``kind``: "held" within 93.5–96.5 % or not distinguishable from it, "wide" above, "tight" below; "seldom" where more
    than a tenth of the samples have no interval; "discrete" for probabilities that a sample meets fewer than ten times.
    ``said_wide``, ``said_short``: the share of intervals that are said to be wide, or perhaps too short.
    """
    rows = []
    for name in sorted(tree["coverage"].children, key=int):
        dataset = tree["coverage"][name].to_dataset()
        flat = dataset.drop_vars(["z_quantile", "level"]).stack(cell=["estimator", "quantity", schema.SPACE, "layer"])
        flat = flat.isel(cell=np.flatnonzero(~np.isnan(flat["above_truth"].values))).reset_index("cell")
        wrong = (flat["above_truth"] + flat["below_truth"]).values
        repeats = flat["repeats"].values
        flat["coverage"] = ("cell", 1 - wrong / repeats)
        bounds = _binomial(repeats - wrong, repeats)
        flat["coverage_low"], flat["coverage_high"] = (("cell", bound) for bound in bounds)
        flat["guesses"] = ("cell", np.full(len(wrong), int(name)))
        flat["kind"] = ("cell", _kinds(flat, int(name)))
        for said in ("said_wide", "said_short"):
            flat[said] = ("cell", flat[said].values / np.maximum(repeats - flat["missing"].values, 1))
        rows.append(flat)
    return xr.concat(rows, dim="cell", data_vars="all")


def _binomial(hits: np.ndarray, n: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clopper and Pearson's 95 % interval."""
    low = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1), n - hits + 1, 0.025), 0.0)
    high = np.where(hits < n, special.betaincinv(hits + 1, np.maximum(n - hits, 1), 0.975), 1.0)
    return low, high


def _kinds(flat: xr.Dataset, n_guesses: int) -> np.ndarray:
    truth = flat["truth"].values
    kinds = np.full(len(truth), "held", dtype="<U8")
    kinds[flat["coverage_low"].values > WANTED[1]] = "wide"
    kinds[flat["coverage_high"].values < WANTED[0]] = "tight"
    edge = np.minimum(truth, 1 - truth) * n_guesses < 10
    kinds[(flat["quantity"].values == "descent_probability") & edge] = "discrete"
    kinds[flat["missing"].values > MOST_MISSING * flat["repeats"].values] = "seldom"
    return kinds


def page(tree: xr.DataTree) -> str:
    """docs/results/calibration.md."""
    found = cells(tree)
    repeats = int(next(iter(tree["coverage"].children.values())).attrs["repeats"])
    everything, found = found, usual(found)
    counted = found.isel(cell=np.flatnonzero(np.isin(found["kind"], ["held", "wide", "tight"])))
    widened = (counted["guesses"] < ENOUGH).values
    alarms, power = tree["false_alarms"].to_dataset(), tree["power"].to_dataset()
    lines = [
        "# Do the intervals reported hold the truth as often as they say, and does check_unbiased keep its rates?",
        "",
        "Written by `python -m studies.calibration` from its result: do not edit. Networks 4-6-6-3 (ReLU, 4 examples) "
        "and, for one output, 3-4-1 (tanh, one example), squared error, without biases, double precision; every layer "
        f"and all together, both spaces. {repeats} samples of every estimator, so that a coverage of 95 % is known to "
        f"± {_half(repeats):.1%}; of the parts of a variance {REPEATS_OF_PARTS} at most. The truth is the closed "
        "form, or, where none is known, the mean of all samples. "
        "Switches where not named: independent noise, example slope, joint layers, Gaussian. Heavy-tailed: "
        f"{'; '.join(HEAVY)} (kurtosis of the noise 6; the gradient over .1 in a tenth of the guesses). Eight harder "
        "settings have a table of their own below, and are in no other table, figure or count but the list of cells "
        "outside the range.",
        "",
        "## Coverage of the 95 % intervals",
        "",
        "Of all (estimator, space, layer) of a quantity: mean coverage, lowest and highest, each with its 95 % "
        "binomial interval, and how many lie below 93.5 % or above 96.5 % by more than chance (their binomial interval "
        "leaves the range out), and of the wide ones how many say so: `x_wide` is 1 in at least half of the samples. "
        "`seldom`: cells with an interval in fewer than nine samples of ten, by the rule that a "
        "direction needs a mean guess of five standard errors along the gradient; `discrete`: probabilities that a "
        "sample meets fewer than ten times. Neither counts in the other columns; both are in the last table.",
        "",
    ]
    for guesses in sorted(set(found["guesses"].values.tolist())):
        lines += [f"### {guesses} guesses", "", _by_quantity(found, guesses), ""]
        if guesses < ENOUGH:
            lines += [
                f"Intervals of fewer than {ENOUGH} guesses are widened on purpose "
                "(`fganalysis.statistics.intervals`): so few show too little of the tails of what they are drawn from.",
                "",
            ]
    lines += [
        "![Coverage of every interval](calibration_coverage.png)",
        "",
        *([_words(counted.isel(cell=np.flatnonzero(widened)), f"Below {ENOUGH} guesses"), ""] if widened.any() else []),
        _words(counted.isel(cell=np.flatnonzero(~widened)), f"From {ENOUGH} guesses on"),
        "",
        *_hard(everything),
        *_exceptions(everything),
        *CHANGES,
        "## z of measured against true values",
        "",
        "![Quantiles of z beside those of a normal law](calibration_z.png)",
        "",
        "Lines: mean over estimators, spaces and layers; bands: nine tenths of them. Norms of biases are left out, as "
        "their squares stand for them. z is the difference over the half-width of the interval on its "
        f"side over 1.96; for squared biases `SquaredNorm.score`. {_z_words(tree)}",
        "",
        "## False alarms of check_unbiased",
        "",
        _alarm_table(alarms),
        "",
        f"Runs on the network with one output, alpha {alarms.attrs['alpha']:g}; the tolerance is so small that no run "
        "may stop as unbiased, so all looks until "
        f"{alarms.attrs['max_guesses']} guesses are had, and stopping is at the first alarm. Rare events: p = .03, "
        "kurtosis about 30.",
        "",
        "## Bounds of check_unbiased, at whatever moment it stops",
        "",
        _bound_table(alarms, power),
        "",
        f"Of the runs above and below; a bound may be wrong with probability {alarms.attrs['alpha']:g}, the interval "
        "of the scale as a whole. A finding is what a verdict says of one space.",
        "",
        "## Power: guesses until a bias is found",
        "",
        "Weight perturbation (Gaussian) times 1 − r, the same network and alpha. The docstring of "
        "`fganalysis.assertions.unbiased` promises about 30 v/r², v the variance along the gradient over ‖g‖²: "
        "2(1 − r)² here.",
        "",
        _power_table(power),
        "",
        f"The first look at which there can be a verdict is at {FIRST_VERDICT} guesses, where large biases are found.",
        "",
        "![Guesses needed against the size of the bias](calibration_power.png)",
        "",
    ]
    return "\n".join(lines)


CHANGES = [
    "## What changed since the first edition of this page",
    "",
    "- The interval of `variance` is made from errors about s g where the shrinkage s is not 1, and has the noise of "
    "the squared bias in it, which was taken for a part of what the groups vary.",
    "- `directional_bias` is 0 where noise makes the squared tangent negative: x/(1 + x) has a pole at −1. Its "
    "interval is called wide where it leaves out less than a tenth of the range.",
    "- Bounds are no nearer to a value than rounding allows, and within the limits of what they bound.",
    "- Every interval says where it may be too short, as what is averaged may have no variance (`x_short`).",
    "- All is computed in units of the gradient's norm, which changes digits that are not printed.",
    "",
]


def usual(found: xr.Dataset) -> xr.Dataset:
    """The cells of all estimators but the hard ones."""
    return found.isel(cell=np.flatnonzero(np.isin(found["estimator"].values, list(ESTIMATORS))))


def _hard(found: xr.Dataset) -> list[str]:
    """A row a hard setting and quantity, a column a number of guesses: coverage, and what is said of it."""
    names = [name for name in HARD if name in found["estimator"].values]
    if not names:
        return []
    guesses = sorted(set(found["guesses"].values.tolist()))
    settled = found.isel(cell=np.flatnonzero(np.isin(found["kind"], ["held", "wide", "tight"])))
    rows = []
    for name in names:
        for quantity in COUNTED:
            own = settled.isel(cell=np.flatnonzero((settled["estimator"] == name) & (settled["quantity"] == quantity)))
            by_guesses = [own.isel(cell=np.flatnonzero(own["guesses"] == n)) for n in guesses]
            if own.sizes["cell"]:
                rows.append([name, f"`{quantity}`", *(_span(part) for part in by_guesses)])
    of_hard = settled.isel(cell=np.flatnonzero(np.isin(settled["estimator"].values, names)))
    silent = ~np.where(of_hard["kind"] == "wide", _says_so(of_hard), of_hard["said_short"].values >= 0.5)
    outside = (of_hard["kind"] != "held").values
    tails = np.isin(of_hard["estimator"].values, TAILS)
    return [
        "## Where squared errors say little, directions are lost and tails are heavy",
        "",
        "Settings in which intervals fell short until they were mended or said so: a step with its learning rate in "
        "it, and the projection on three tangents of 78 weights, both so short that their squared error is mostly "
        "bias; minibatches and signs (two units, one example, layers one by one), whose squared errors hardly vary or "
        "do not; weight perturbation of 10⁵ weights, drawn from its law, whose mean guess is lost in noise; and weight "
        "perturbation times 1 + t₃ or times a log-normal number with σ = 1. In these two the square of a guess has no "
        "variance, or shows none in so few guesses. Lowest to highest coverage over spaces and layers, in %. ≤: said "
        "to be wide, ≥: said to be perhaps too short, in at least half of the samples of one of the cells.",
        "",
        table(["setting", "quantity", *(f"{n} guesses" for n in guesses)], rows),
        "",
        f"In {len(silent)} cells: {int((~outside).sum())} held, {int((of_hard['kind'] == 'wide').sum())} wide and "
        f"{int((of_hard['kind'] == 'tight').sum())} tight, {int((outside & tails).sum())} of these outside in the two "
        f"with tails. {int((outside & silent).sum())} of those outside do not say so in at least half of the samples.",
        "",
    ]


def _span(own: xr.Dataset) -> str:
    """Lowest to highest coverage of some cells, marked by what most of the samples of one of them say."""
    if not own.sizes["cell"]:
        return "–"
    low, high = (100 * float(bound) for bound in (own["coverage"].min(), own["coverage"].max()))
    wide, short = (bool((own[said] >= 0.5).any()) for said in ("said_wide", "said_short"))
    return f"{low:.1f}–{high:.1f}" + " ≤" * wide + " ≥" * short


def _half(repeats: int) -> float:
    return float(1.96 * np.sqrt(0.95 * 0.05 / repeats))


def _percent(row: xr.Dataset) -> str:
    coverage, low, high = (float(row[name]) * 100 for name in ("coverage", "coverage_low", "coverage_high"))
    return f"{coverage:.1f} ({low:.1f}–{high:.1f})"


def _by_quantity(found: xr.Dataset, guesses: int) -> str:
    rows = []
    for quantity in COUNTED:
        own = found.isel(cell=np.flatnonzero((found["quantity"] == quantity) & (found["guesses"] == guesses)))
        kinds = own["kind"].values
        kept = own.isel(cell=np.flatnonzero(np.isin(kinds, ["held", "wide", "tight"])))
        if not kept.sizes["cell"]:
            continue
        order = np.argsort(kept["coverage"].values)
        lowest, highest = (kept.isel(cell=int(order[place])) for place in (0, -1))
        rows.append(
            [
                f"`{quantity}`",
                str(kept.sizes["cell"]),
                f"{float(kept['coverage'].mean()):.1%}",
                _percent(lowest),
                _percent(highest),
                *(str(int((kinds == kind).sum())) for kind in ("tight", "wide")),
                str(int(((kinds == "wide") & _says_so(own)).sum())),
                *(str(int((kinds == kind).sum())) for kind in ("seldom", "discrete")),
            ]
        )
    header = ["quantity", "cells", "mean", "lowest", "highest", "tight", "wide", "saying so", "seldom", "discrete"]
    return table(header, rows)


def _words(counted: xr.Dataset, where: str) -> str:
    kinds, shares = counted["kind"].values, counted["coverage"].values
    heavy = np.isin(counted["estimator"].values, HEAVY)
    held, wide, tight = (kinds == kind for kind in ("held", "wide", "tight"))
    by_chance = held & ((shares < WANTED[0]) | (shares > WANTED[1]))
    return (
        f"{where}, in {len(kinds)} cells: {held.sum()} held ({by_chance.sum()} of them outside the range by no more "
        f"than chance), {wide.sum()} wide, {(wide & _says_so(counted)).sum()} of which say so, {tight.sum()} tight; "
        f"{(counted['said_short'].values >= 0.5).sum()} say that they may be too short. Of "
        f"the {heavy.sum()} heavy-tailed ones {(heavy & tight).sum()} tight. Mean coverage {shares.mean():.2%}, of the "
        f"heavy-tailed ones {shares[heavy].mean():.2%}. In every one of these cells "
        f"{float((1 - counted['coverage']).max()):.1%} of the samples at most have an interval that is wrong."
    )


def _says_so(found: xr.Dataset) -> NDArray[np.bool_]:
    return np.asarray(found["said_wide"].values >= 0.5)


def _exceptions(found: xr.Dataset) -> list[str]:
    """Every cell outside the range, grouped by estimator, quantity and guesses."""
    rows = []
    kinds, few = found["kind"].values, found["guesses"].values < ENOUGH
    outside = found.isel(cell=np.flatnonzero(np.where(few, kinds == "tight", kinds != "held")))
    keys = list(
        zip(*(outside[name].values.tolist() for name in ("kind", "estimator", "quantity", "guesses")), strict=True)
    )
    order = {kind: place for place, kind in enumerate(("tight", "wide", "seldom", "discrete"))}
    for key in sorted(set(keys), key=lambda one: (order[one[0]], one[1:])):
        own = outside.isel(cell=[place for place, other in enumerate(keys) if other == key])
        places = ", ".join(
            f"{space} {'all' if layer == 0 else layer}"
            for space, layer in zip(own[schema.SPACE].values, own["layer"].values, strict=True)
        )
        columns = ("coverage", "said_wide", "said_short")
        shares = (f"{100 * own[name].min():.1f}–{100 * own[name].max():.1f}" for name in columns)
        rows.append([key[0], key[1], f"`{key[2]}`", str(key[3]), places, *shares])
    if not rows:
        return []
    return [
        "## Every cell outside 93.5–96.5 %",
        "",
        f"Below {ENOUGH} guesses the tight ones alone. Layers are numbered from 1. Where most of the noise lies in one "
        "direction and the bias across it, as that of a truncated upstream guess does, the interval is wide: what of "
        "the variance the bias adds is estimated with an error as large as the variance "
        "(`fganalysis.statistics.squared_norm`).",
        "",
        table(
            [
                "kind",
                "estimator",
                "quantity",
                "guesses",
                "space and layer",
                "coverage, %",
                "said wide, %",
                "said short, %",
            ],
            rows,
        ),
        "",
    ]


def z_shown(tree: xr.DataTree) -> list[str]:
    """The numbers of guesses whose z are looked at: where intervals are not widened on purpose, if there are any."""
    names = sorted(tree["coverage"].children, key=int)
    return [name for name in names if int(name) >= ENOUGH] or names


def _z_words(tree: xr.DataTree) -> str:
    expected = stats.norm.ppf(LEVELS)
    words = []
    for name in z_shown(tree):
        quantiles = of_usual(tree, name).sel(quantity=[*shown(tree)])
        own = quantiles.transpose("level", ...).values.reshape(len(LEVELS), -1)
        own = own[:, ~np.isnan(own).any(0)]
        spread = np.sqrt((own**2).mean())
        words.append(
            f"At {name} guesses the rms of the quantiles is {spread:.3f} (normal law: "
            f"{np.sqrt((expected**2).mean()):.3f}), and the mean quantile differs from the normal one by "
            f"{np.abs(own.mean(1) - expected).max():.2f} at most."
        )
    return " ".join(words)


def of_usual(tree: xr.DataTree, guesses: str) -> xr.DataArray:
    """Quantiles of z at this number of guesses, of all estimators but the hard ones."""
    quantiles = tree["coverage"][guesses].to_dataset()["z_quantile"]
    return quantiles.isel(estimator=np.flatnonzero(np.isin(quantiles["estimator"].values, list(ESTIMATORS))))


def shown(tree: xr.DataTree) -> list[str]:
    known = next(iter(tree["coverage"].children.values())).to_dataset()["quantity"].values.tolist()
    return [name for name in Z_SHOWN if name in known]


def _alarm_table(alarms: xr.Dataset) -> str:
    rows = []
    for name in alarms["estimator"].values:
        hits, runs = (int(alarms[key].sel(estimator=name)) for key in ("false_alarms", "runs"))
        low, high = _binomial(np.array([hits]), runs)
        rows.append([str(name), str(runs), str(hits), f"{hits / runs:.2%} ({low[0]:.2%}–{high[0]:.2%})"])
    return table(["unbiased estimator", "runs", "called biased", "rate with its 95 % interval"], rows)


def _bound_table(alarms: xr.Dataset, power: xr.Dataset) -> str:
    runs = [(f"{name}, unbiased", alarms.sel(estimator=name)) for name in alarms["estimator"].values]
    runs += [(f"weight perturbation less {bias:.0%}", power.sel(bias=bias)) for bias in power["bias"].values]
    rows = []
    for name, own in runs:
        findings = int(own["findings"])
        shares = []
        for key in ("lower_wrong", "upper_wrong", "scale_wrong"):
            low, high = _binomial(np.array([int(own[key])]), findings)
            shares.append(f"{int(own[key]) / findings:.2%} ({low[0]:.2%}–{high[0]:.2%})")
        rows.append([name, str(findings), *shares])
    header = [
        "estimator",
        "findings",
        "lower bound of the bias wrong",
        "upper bound wrong",
        "interval of the scale wrong",
    ]
    return table(header, rows)


def _power_table(power: xr.Dataset) -> str:
    rows = []
    for bias in power["bias"].values:
        needed = power["guesses_needed"].sel(bias=bias).values
        found = needed[~np.isnan(needed)]
        middle = f"{np.median(found):.0f}" if len(found) else "–"
        span = f"{found.min():.0f}–{found.max():.0f}" if len(found) else "–"
        rows.append([f"{bias:g}", f"{len(found)} of {len(needed)}", middle, span, f"{promised(bias):.0f}"])
    return table(["relative bias", "found", "median guesses", "all runs", "promised"], rows)


def promised(bias: Array) -> Array:
    """Guesses until a bias is found, as the docstring of `fganalysis.assertions.unbiased` says, no fewer than a verdict
    takes."""
    return np.maximum(30 * 2 * (1 - bias) ** 2 / bias**2, FIRST_VERDICT)
