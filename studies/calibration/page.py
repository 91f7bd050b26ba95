"""What the page of `studies.calibration` says, computed from its result; the sentences are in page.md.j2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from fganalysis.assertions.error_blocks import BLOCKS, FIRST_BLOCK, GROWTH
from fganalysis.results import schema
from fganalysis.statistics.intervals import ENOUGH
from studies.calibration.cells import COUNTED, REPEATS_OF_PARTS
from studies.calibration.counting import LEVELS
from studies.calibration.estimators import ESTIMATORS, HARD, HEAVY, TAILS
from studies.kit import pages
from studies.kit.shares import clopper_pearson

Array = NDArray[np.float64]
FIRST_VERDICT = round(FIRST_BLOCK * (1 + GROWTH)) * BLOCKS  # Guesses at the second look.
WANTED = (0.935, 0.965)
MOST_MISSING = 0.1  # Share of samples without an interval: with more, the coverage of a cell says little.
Z_SHOWN = ("squared_bias", "shrinkage", "variance", "mse", "cosine", "efficiency", "best_scale", "wang2025_variance")


def cells(tree: xr.DataTree) -> xr.Dataset:
    """A cell for each (guesses, estimator, quantity, space, layer): coverage, its binomial interval, and its kind.

    ``kind``: "held" if the coverage is within 93.5–96.5 % or does not differ from it significantly, "wide" above,
    "tight" below; "seldom" if more than a tenth of the samples have no interval; "discrete" for probabilities of events
    of which a sample expects fewer than ten.
    ``said_wide``, ``said_short``: the share of intervals that are marked as wide, or as perhaps too short.
    """
    rows = []
    for name in sorted(tree["coverage"].children, key=int):
        dataset = tree["coverage"][name].to_dataset()
        flat = dataset.drop_vars(["z_quantile", "level"]).stack(cell=["estimator", "quantity", schema.SPACE, "layer"])
        flat = flat.isel(cell=np.flatnonzero(~np.isnan(flat["above_truth"].values))).reset_index("cell")
        wrong = (flat["above_truth"] + flat["below_truth"]).values
        repeats = flat["repeats"].values
        flat["coverage"] = ("cell", 1 - wrong / repeats)
        bounds = clopper_pearson(repeats - wrong, repeats)
        flat["coverage_low"], flat["coverage_high"] = (("cell", bound) for bound in bounds)
        flat["guesses"] = ("cell", np.full(len(wrong), int(name)))
        flat["kind"] = ("cell", _kinds(flat, int(name)))
        for said in ("said_wide", "said_short"):
            flat[said] = ("cell", flat[said].values / np.maximum(repeats - flat["missing"].values, 1))
        rows.append(flat)
    return xr.concat(rows, dim="cell", data_vars="all")


def _kinds(flat: xr.Dataset, n_guesses: int) -> np.ndarray:
    """The kind of each cell, as `cells` defines it."""
    truth = flat["truth"].values
    kinds = np.full(len(truth), "held", dtype="<U8")
    kinds[flat["coverage_low"].values > WANTED[1]] = "wide"
    kinds[flat["coverage_high"].values < WANTED[0]] = "tight"
    edge = np.minimum(truth, 1 - truth) * n_guesses < 10
    kinds[(flat["quantity"].values == "descent_probability") & edge] = "discrete"
    kinds[flat["missing"].values > MOST_MISSING * flat["repeats"].values] = "seldom"
    return kinds


def page(tree: xr.DataTree) -> str:
    """The page docs/results/calibration.md."""
    return pages.render("calibration", values(tree))


def values(tree: xr.DataTree) -> dict[str, object]:
    """Everything that the template names."""
    everything = cells(tree)
    usual_cells = usual(everything)
    repeats = int(next(iter(tree["coverage"].children.values())).attrs["repeats"])
    counted = usual_cells.isel(cell=np.flatnonzero(np.isin(usual_cells["kind"], ["held", "wide", "tight"])))
    widened = (counted["guesses"] < ENOUGH).values
    alarms, power = tree["false_alarms"].to_dataset(), tree["power"].to_dataset()
    return {
        "repeats": repeats,
        "half": half_width(repeats),
        "repeats_of_parts": REPEATS_OF_PARTS,
        "heavy": list(HEAVY),
        "enough": ENOUGH,
        "by_guesses": [
            (guesses, by_quantity(usual_cells, guesses, COUNTED)) for guesses in numbers_of_guesses(usual_cells)
        ],
        "below": _counts(counted.isel(cell=np.flatnonzero(widened))) if widened.any() else None,
        "above": _counts(counted.isel(cell=np.flatnonzero(~widened))),
        "hard": _hard(everything),
        "exceptions": exceptions(everything),
        "z": _z_spread(tree),
        "alarms": _alarm_rows(alarms),
        "alpha": float(alarms.attrs["alpha"]),
        "max_guesses": alarms.attrs["max_guesses"],
        "bounds": _bound_rows(alarms, power),
        "power": _power_rows(power),
        "first_verdict": FIRST_VERDICT,
    }


def numbers_of_guesses(all_cells: xr.Dataset) -> list[int]:
    return sorted(set(all_cells["guesses"].values.tolist()))


def usual(all_cells: xr.Dataset) -> xr.Dataset:
    """The cells of all estimators but the hard ones."""
    return all_cells.isel(cell=np.flatnonzero(np.isin(all_cells["estimator"].values, list(ESTIMATORS))))


def _hard(all_cells: xr.Dataset) -> dict[str, object] | None:
    """Coverage in the hard settings, and counts of their cells by kind; None where there are no hard settings.

    ``rows`` has a row for each hard setting and quantity, with a column for each number of guesses.
    """
    names = [name for name in HARD if name in all_cells["estimator"].values]
    if not names:
        return None
    guesses = numbers_of_guesses(all_cells)
    settled = all_cells.isel(cell=np.flatnonzero(np.isin(all_cells["kind"], ["held", "wide", "tight"])))
    rows = []
    for name in names:
        for quantity in COUNTED:
            chosen = (settled["estimator"] == name) & (settled["quantity"] == quantity)
            of_setting = settled.isel(cell=np.flatnonzero(chosen))
            by_guesses = [of_setting.isel(cell=np.flatnonzero(of_setting["guesses"] == n)) for n in guesses]
            if of_setting.sizes["cell"]:
                rows.append([name, f"`{quantity}`", *(_span(part) for part in by_guesses)])
    of_hard = settled.isel(cell=np.flatnonzero(np.isin(settled["estimator"].values, names)))
    unmarked = ~np.where(of_hard["kind"] == "wide", _marked_wide(of_hard), of_hard["said_short"].values >= 0.5)
    outside = (of_hard["kind"] != "held").values
    tails = np.isin(of_hard["estimator"].values, TAILS)
    return {
        "guesses": guesses,
        "rows": rows,
        "n": len(unmarked),
        "held": int((~outside).sum()),
        "wide": int((of_hard["kind"] == "wide").sum()),
        "tight": int((of_hard["kind"] == "tight").sum()),
        "with_tails": int((outside & tails).sum()),
        "silent": int((outside & unmarked).sum()),
    }


def _span(some_cells: xr.Dataset) -> str:
    """Lowest to highest coverage of some cells; ≤ or ≥ if a cell is marked as wide or short in most of its samples."""
    if not some_cells.sizes["cell"]:
        return "–"
    low, high = (100 * float(bound) for bound in (some_cells["coverage"].min(), some_cells["coverage"].max()))
    wide, short = (bool((some_cells[mark] >= 0.5).any()) for mark in ("said_wide", "said_short"))
    return f"{low:.1f}–{high:.1f}" + " ≤" * wide + " ≥" * short


def half_width(repeats: int) -> float:
    """Half-width of the 95 % interval of a coverage of 95 % that is measured with this many samples."""
    return float(1.96 * np.sqrt(0.95 * 0.05 / repeats))


def _percent(cell: xr.Dataset) -> str:
    """The coverage of one cell with its binomial interval, in percent."""
    coverage, low, high = (float(cell[name]) * 100 for name in ("coverage", "coverage_low", "coverage_high"))
    return f"{coverage:.1f} ({low:.1f}–{high:.1f})"


def by_quantity(some_cells: xr.Dataset, guesses: int, counted: Sequence[str]) -> list[list[str]]:
    """Coverage and counts of cells at a number of guesses: a row for each quantity."""
    rows = []
    for quantity in counted:
        chosen = (some_cells["quantity"] == quantity) & (some_cells["guesses"] == guesses)
        of_quantity = some_cells.isel(cell=np.flatnonzero(chosen))
        kinds = of_quantity["kind"].values
        kept = of_quantity.isel(cell=np.flatnonzero(np.isin(kinds, ["held", "wide", "tight"])))
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
                str(int(((kinds == "wide") & _marked_wide(of_quantity)).sum())),
                *(str(int((kinds == kind).sum())) for kind in ("seldom", "discrete")),
            ]
        )
    return rows


def _counts(counted: xr.Dataset) -> dict[str, float]:
    """How many cells are of each kind, and how many are marked in most of their samples."""
    kinds, shares = counted["kind"].values, counted["coverage"].values
    heavy = np.isin(counted["estimator"].values, HEAVY)
    held, wide, tight = (kinds == kind for kind in ("held", "wide", "tight"))
    by_chance = held & ((shares < WANTED[0]) | (shares > WANTED[1]))
    return {
        "n": len(kinds),
        "held": int(held.sum()),
        "by_chance": int(by_chance.sum()),
        "wide": int(wide.sum()),
        "said_wide": int((wide & _marked_wide(counted)).sum()),
        "tight": int(tight.sum()),
        "said_short": int((counted["said_short"].values >= 0.5).sum()),
        "heavy": int(heavy.sum()),
        "heavy_tight": int((heavy & tight).sum()),
        "mean": 100 * float(shares.mean()),
        "heavy_mean": 100 * float(shares[heavy].mean()),
        "most_wrong": 100 * float((1 - counted["coverage"]).max()),
    }


def _marked_wide(some_cells: xr.Dataset) -> NDArray[np.bool_]:
    """Whether a cell is marked as wide in at least half of its samples."""
    return np.asarray(some_cells["said_wide"].values >= 0.5)


def exceptions(all_cells: xr.Dataset, least: int = 0) -> list[list[str]]:
    """Every cell outside the range, grouped by estimator, quantity and guesses; of at least so many guesses."""
    rows = []
    kinds, few = all_cells["kind"].values, all_cells["guesses"].values < ENOUGH
    shown = np.where(few, kinds == "tight", kinds != "held") & (all_cells["guesses"].values >= least)
    outside = all_cells.isel(cell=np.flatnonzero(shown))
    keys = list(
        zip(*(outside[name].values.tolist() for name in ("kind", "estimator", "quantity", "guesses")), strict=True)
    )
    order = {kind: place for place, kind in enumerate(("tight", "wide", "seldom", "discrete"))}
    for key in sorted(set(keys), key=lambda key: (order[key[0]], key[1:])):
        group = outside.isel(cell=[place for place, other in enumerate(keys) if other == key])
        places = ", ".join(
            f"{space} {'all' if layer == 0 else layer}"
            for space, layer in zip(group[schema.SPACE].values, group["layer"].values, strict=True)
        )
        columns = ("coverage", "said_wide", "said_short")
        shares = (f"{100 * group[name].min():.1f}–{100 * group[name].max():.1f}" for name in columns)
        rows.append([key[0], key[1], f"`{key[2]}`", str(key[3]), places, *shares])
    return rows


def z_shown(tree: xr.DataTree) -> list[str]:
    """The numbers of guesses whose z scores are shown: those without intervals widened on purpose, if there are any."""
    names = sorted(tree["coverage"].children, key=int)
    return [name for name in names if int(name) >= ENOUGH] or names


def _z_spread(tree: xr.DataTree) -> list[dict[str, float | str]]:
    """How far the quantiles of z are from normal quantiles, at every number of guesses that is shown."""
    expected = stats.norm.ppf(LEVELS)
    spreads: list[dict[str, float | str]] = []
    for name in z_shown(tree):
        quantiles = of_usual(tree, name).sel(quantity=[*shown(tree)])
        by_level = quantiles.transpose("level", ...).values.reshape(len(LEVELS), -1)
        by_level = by_level[:, ~np.isnan(by_level).any(0)]
        spread = np.sqrt((by_level**2).mean())
        spreads.append(
            {
                "guesses": name,
                "rms": float(spread),
                "normal": float(np.sqrt((expected**2).mean())),
                "furthest": float(np.abs(by_level.mean(1) - expected).max()),
            }
        )
    return spreads


def of_usual(tree: xr.DataTree, guesses: str) -> xr.DataArray:
    """Quantiles of z at this number of guesses, of all estimators but the hard ones."""
    quantiles = tree["coverage"][guesses].to_dataset()["z_quantile"]
    return quantiles.isel(estimator=np.flatnonzero(np.isin(quantiles["estimator"].values, list(ESTIMATORS))))


def shown(tree: xr.DataTree) -> list[str]:
    """The quantities of `Z_SHOWN` that the result has."""
    known = next(iter(tree["coverage"].children.values())).to_dataset()["quantity"].values.tolist()
    return [name for name in Z_SHOWN if name in known]


def _alarm_rows(alarms: xr.Dataset) -> list[list[str]]:
    """Runs and false alarms: a row for each unbiased estimator."""
    rows = []
    for name in alarms["estimator"].values:
        hits, runs = (int(alarms[key].sel(estimator=name)) for key in ("false_alarms", "runs"))
        low, high = clopper_pearson(hits, runs)
        rows.append([str(name), str(runs), str(hits), f"{hits / runs:.2%} ({low:.2%}–{high:.2%})"])
    return rows


def _bound_rows(alarms: xr.Dataset, power: xr.Dataset) -> list[list[str]]:
    """How often each bound is wrong: a row for each estimator."""
    runs = [(f"{name}, unbiased", alarms.sel(estimator=name)) for name in alarms["estimator"].values]
    runs += [(f"weight perturbation less {bias:.0%}", power.sel(bias=bias)) for bias in power["bias"].values]
    rows = []
    for name, counts in runs:
        findings = int(counts["findings"])
        shares = []
        for key in ("lower_wrong", "upper_wrong", "scale_wrong"):
            low, high = clopper_pearson(int(counts[key]), findings)
            shares.append(f"{int(counts[key]) / findings:.2%} ({low:.2%}–{high:.2%})")
        rows.append([name, str(findings), *shares])
    return rows


def _power_rows(power: xr.Dataset) -> list[list[str]]:
    """Guesses until a bias is detected, measured and promised: a row for each bias."""
    rows = []
    for bias in power["bias"].values:
        needed = power["guesses_needed"].sel(bias=bias).values
        detected = needed[~np.isnan(needed)]
        middle = f"{np.median(detected):.0f}" if len(detected) else "–"
        span = f"{detected.min():.0f}–{detected.max():.0f}" if len(detected) else "–"
        rows.append([f"{bias:g}", f"{len(detected)} of {len(needed)}", middle, span, f"{promised(bias):.0f}"])
    return rows


def promised(bias: Array) -> Array:
    """Guesses until a bias is detected, as the docstring of `fganalysis.assertions.unbiased` promises.

    No fewer than the first look that can end in a verdict.
    """
    return np.maximum(30 * 2 * (1 - bias) ** 2 / bias**2, FIRST_VERDICT)
