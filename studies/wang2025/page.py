"""What the page of `studies.wang2025` says, computed from its DataTree; the sentences are in page.md.j2."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import xarray as xr
from scipy import special

from studies.kit import pages
from studies.kit.markdown import listed, scientific
from studies.kit.seeds import Interval, over_seeds
from studies.wang2025.collected import JACOBIAN, difference, final
from studies.wang2025.paper import METRICS, NAMES, OVERLAPS, RANKS, TABLE_1, TABLE_2, TABLE_3, TABLE_5, WIDTHS

ORDER = (("orthogonal, k = 10", "upstream"), ("upstream", "activity"), ("orthogonal, k = 10", "activity"))
JUDGED = (128, 256)  # The widths at which the order is asked for with intervals apart.
LAYERS = (1, 2, 3)


def page(tree: xr.DataTree) -> str:
    """The page docs/results/wang2025.md."""
    done, planned = (int(number) for number in tree.attrs["trainings"].split(" of "))
    return pages.render("wang2025", values(tree) | {"done": done, "planned": planned})


def text(tree: xr.DataTree) -> str:
    """What is printed: the tables of the page."""
    return pages.render("wang2025", values(tree), "tables.md.j2")


def values(tree: xr.DataTree) -> dict[str, object]:
    """Everything that the templates name."""
    table_3 = _table_3(tree)
    with_interval = [row for row in table_3 if row[-1] != "–"]
    rows_in_order, holds, fails = _order(tree)
    return {
        "epochs": int(tree.attrs["epochs"]),
        "iterations": int(tree.attrs["subspace_iterations"]),
        "metric_guesses": int(tree.attrs["metric_guesses"]),
        "table_3": table_3,
        "n_with_interval": len(with_interval),
        "n_inside": sum(row[-1] == "yes" for row in with_interval),
        "order": rows_in_order,
        "holds": holds,
        "fails": fails,
        "judged": [_judged(tree, width) for width in JUDGED],
        "table_1": _table_1(tree),
        "over_others": _over_others(tree),
        "table_2": _table_2(tree),
        "covariance_norm": math.sqrt(128 - 10) / 128,
        "table_5": _table_5(tree),
        "preconditioned_gain": _unless_unknown(difference(tree, "preconditioned", "activity", 256)),
        "figure_1": _figure_1(tree),
        "iterated_gain": _unless_unknown(difference(tree, "orthogonal, k = 10, iterated", "orthogonal, k = 10", 128)),
    }


def _unless_unknown(interval: Interval) -> Interval | None:
    return interval if math.isfinite(interval.half) else None


def _single_run(numbers: Iterable[float]) -> Interval:
    """Mean and half-width of the 95 % interval of one more run: t · s · √(1 + 1/n)."""
    runs = np.asarray(list(numbers), dtype=float)
    n = len(runs)
    if n < 2:
        return Interval(float(runs.mean()) if n else math.nan, math.nan)
    half = special.stdtrit(n - 1, 0.975) * runs.std(ddof=1) * math.sqrt(1 + 1 / n)
    return Interval(float(runs.mean()), float(half))


def _inside(value: float, interval: Interval) -> str:
    """Whether a number of the paper is in an interval, or on which side of it; a dash where there is no interval."""
    if not math.isfinite(interval.half):
        return "–"
    return "yes" if interval.low <= value <= interval.high else ("below" if value < interval.low else "above")


def _compared(runs: xr.DataArray, printed: float) -> list[str]:
    """Printed, ours, number of seeds, and whether the one is in the intervals of the other."""
    mean = over_seeds(runs.values)
    verdicts = [_inside(printed, mean), _inside(printed, _single_run(runs.values))]
    return [f"{printed:.3f}", str(mean), str(len(runs)), *verdicts]


def _table_3(tree: xr.DataTree) -> list[list[str]]:
    rows = []
    for index, width in enumerate(WIDTHS):
        for method, printed in TABLE_3.items():
            runs = final(tree, method, width)
            if len(runs):
                rows.append([str(width), NAMES[method], *_compared(runs, printed[index])])
    return rows


def _order(tree: xr.DataTree) -> tuple[list[dict[str, object]], list[int], list[int]]:
    """A row a pair of methods; the widths at which all three differences are above zero, and at which they are not."""
    rows: list[dict[str, object]] = []
    holds: list[int] = []
    fails: list[int] = []
    for width in WIDTHS:
        pairs = [(better, worse, difference(tree, better, worse, width)) for better, worse in ORDER]
        pairs = [pair for pair in pairs if math.isfinite(pair[2].half)]
        for better, worse, paired in pairs:
            first, second = (over_seeds(final(tree, method, width).values) for method in (better, worse))
            row = {"width": width, "better": NAMES[better], "worse": NAMES[worse], "difference": paired}
            rows.append(row | {"apart": first.low > second.high})
        if len(pairs) == len(ORDER):
            (holds if all(paired.low > 0 for _, _, paired in pairs) else fails).append(width)
    return rows, holds, fails


def _judged(tree: xr.DataTree, width: int) -> dict[str, object]:
    """Whether the three intervals of means are apart in the order of table 3, and for each pair that is not, why.

    ``missing`` names the pair without two seeds in common, for which nothing can be said.
    """
    reasons: list[dict[str, object]] = []
    for better, worse in ORDER:
        paired = difference(tree, better, worse, width)
        names = [NAMES[better], NAMES[worse]]
        if not math.isfinite(paired.half):
            return {"width": width, "missing": names, "reasons": []}
        runs = [final(tree, method, width) for method in (better, worse)]
        first, second = (over_seeds(own.values) for own in runs)
        if first.low <= second.high:
            reason = {"names": names, "means": [first, second], "difference": paired, "n_seeds": [*map(len, runs)]}
            spreads = [float(own.std(ddof=1)) for own in runs]
            reasons.append(reason | {"spreads": spreads, "in_common": _in_common(*runs)})
    return {"width": width, "missing": [], "reasons": reasons}


def _in_common(runs: xr.DataArray, others: xr.DataArray) -> float:
    """How much of the variance between seeds two methods share: what the paired difference is spared of."""
    runs, others = xr.align(runs, others, join="inner")
    both = float(runs.var(ddof=1) + others.var(ddof=1))
    return max(0.0, 1 - float((runs - others).var(ddof=1)) / both) if both else 0.0


def _table_1(tree: xr.DataTree) -> list[list[str]]:
    if not len(final(tree, "orthogonal, k = 1", 128)):
        return []
    rows = [(method, printed, final(tree, method, 128)) for method, printed in TABLE_1.items()]
    return [[NAMES[method], *_compared(runs, printed)] for method, printed, runs in rows if len(runs)]


def _over_others(tree: xr.DataTree) -> list[tuple[str, Interval]]:
    """Training accuracy with k = 10 less that of the other rows of table 1."""
    others = [method for method in TABLE_1 if method != "orthogonal, k = 10" and len(final(tree, method, 128)) > 1]
    return [(NAMES[method], difference(tree, "orthogonal, k = 10", method, 128)) for method in others]


def _metric(tree: xr.DataTree, method: str, width: int, guess: str, layer: int, name: str) -> xr.DataArray:
    """One number a seed; empty where no cell has it."""
    metrics = tree["metrics"].to_dataset() if "metrics" in tree.children else xr.Dataset()
    chosen = {"trained_by": method, "width": width, "guess_kind": guess}
    if name not in metrics or any(value not in metrics[dim].values for dim, value in chosen.items()):
        return xr.DataArray(np.empty(0), dims="seed")
    return metrics[name].sel(chosen).sel(layer=layer).dropna("seed")


def _shown(runs: xr.DataArray) -> str:
    return scientific(over_seeds(runs.values)) if len(runs) else "–"


def _table_2(tree: xr.DataTree) -> list[list[str]]:
    rows = []
    for guess, printed in TABLE_2.items():
        for (name, rounding), value in zip(METRICS.items(), printed, strict=True):
            measured = [_metric(tree, "orthogonal, k = 10", 128, guess, layer, name) for layer in LAYERS]
            runs = [_single_run(own.values) for own in measured]
            verdicts = [_inside(value, Interval(run.mean, run.half + rounding)) for run in runs]
            inside = [layer for layer, verdict in zip(LAYERS, verdicts, strict=True) if verdict == "yes"]
            said = "–" if set(verdicts) == {"–"} else (listed(inside) if inside else "none")
            rows.append([guess, name.replace("_", " "), f"{value:.2e}", *map(_shown, measured), said])
    return rows


def _table_5(tree: xr.DataTree) -> list[list[str]]:
    if not len(final(tree, "preconditioned", 256)):
        return []
    rows = []
    for method, (guess, variance, bias, train, test) in TABLE_5.items():
        if not len(final(tree, method, 256)):
            continue
        for name, printed in (("variance", variance), ("bias", bias)):
            measured = _metric(tree, method, 256, guess, 1, name)
            inside = [_inside(printed, interval(measured.values)) for interval in (over_seeds, _single_run)]
            rows.append([NAMES[method], name, f"{printed:.2e}", _shown(measured), *inside])
        for name, printed in (("train_accuracy", train), ("test_accuracy", test)):
            printed_text, ours, _, *inside = _compared(final(tree, method, 256, name), printed)
            rows.append([NAMES[method], name.replace("_", " "), printed_text, ours, *inside])
    return rows


def _figure_1(tree: xr.DataTree) -> list[list[str]]:
    jacobian = tree["jacobian"].to_dataset()
    rows = []
    for width in jacobian["width"].values:
        for method in ("orthogonal, k = 10", "upstream", "backpropagation"):
            if method not in jacobian["trained_by"].values:
                continue
            for layer in (1, 2):
                own = jacobian.sel(width=width, trained_by=method, layer=layer)
                if np.isfinite(own["overlap"]).any():
                    known = method == "orthogonal, k = 10"
                    rows.append([str(width), NAMES[method], str(layer), *_looked_for(own, int(width), layer, known)])
    return rows


def _looked_for(own: xr.Dataset, width: int, layer: int, known: bool) -> list[str]:
    """The cells of one network: rank and overlap with what the paper prints, where it is known, and squared overlap."""
    row: list[str] = []
    for name, printed in zip(JACOBIAN, (RANKS, OVERLAPS, None), strict=True):
        before, after = (own[name].sel(when=when).dropna("seed").values for when in ("before", "after"))
        ours = [str(over_seeds(before)), str(over_seeds(after))]
        if printed is None:
            row += ours
        elif known and width in printed:
            value = printed[width][layer - 1]
            row += [f"{value:g}", *ours, _inside(value, _single_run(after))]
        else:
            row += ["–", *ours, "–"]
    return row
