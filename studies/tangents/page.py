"""What the page of `studies.tangents` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import special

from studies.kit import pages
from studies.kit.seeds import Interval
from studies.tangents.cells import QUANTITIES, ROUTES, Z95

STRIDE = 2  # Every other power of two of k is shown: a reader can distinguish six lines, but not eleven.


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/tangents.md."""
    return pages.render("tangents", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    largest, draws = int(dataset["n"][-1]), dataset["draws"].sel(route="direct")
    needed = dataset["tangents_needed"].sel(n=largest)
    ratios = needed.sel(combine="mean") / needed.sel(combine="orthogonal")
    norm = dataset.sel(n=largest).isel(k=-1)["norm_ratio_predicted"]
    return {
        "largest_n": largest,
        "largest_k": int(dataset["k"][-1]),
        "draws": dataset.attrs["draws"],
        "least_draws": int(draws.where(draws > 0).min()),
        "needed": _needed(dataset, largest),
        "least": {
            combine: [int(needed.sel(combine=combine)[i]) for i in (0, -1)] for combine in ("mean", "orthogonal")
        },
        "ratios": [(float(ratios[i]), float(ratios["target"][i])) for i in (0, -1)],
        "norm": {combine: float(norm.sel(combine=combine)) for combine in ("mean", "orthogonal")},
        "comparison": _comparison(dataset.sel(n=largest)),
        "agreement": _agreement(dataset),
    }


def _needed(dataset: xr.Dataset, largest: int) -> list[list[str]]:
    """How many tangents a mean cosine takes: a row for each way of combining and each cosine."""
    rows = []
    for combine in dataset["combine"].values:
        largest_n = dataset.sel(combine=combine, n=largest)
        for target in dataset["target"].values:
            low, high = _bracket(largest_n, float(target))
            needed = int(largest_n["tangents_needed"].sel(target=target))
            rows.append([str(combine), f"{target:g}", f"{needed}", low, high])
    return rows


def _bracket(over_k: xr.Dataset, target: float) -> tuple[str, str]:
    """The largest k whose measured interval lies below the target, and the smallest k whose interval lies above it."""
    rotated = over_k.sel(route="rotated")
    best = rotated.where(rotated["draws"] > 0, over_k.sel(route="direct"))
    half = Z95 * best["cosine_se"]
    below = best["k"].values[(best["cosine"] + half < target).values]
    above = best["k"].values[(best["cosine"] - half > target).values]
    return (str(below.max()) if len(below) else "–", str(above.min()) if len(above) else "–")


def _comparison(largest_n: xr.Dataset) -> list[list[str]]:
    """Measured and predicted values at the largest n: a row for each way of combining and each k."""
    rows = []
    for combine in largest_n["combine"].values:
        for k in largest_n["k"].values[::STRIDE]:
            point = largest_n.sel(combine=combine, k=k)
            cells = [str(combine), str(k)]
            for name in QUANTITIES:
                for route in ROUTES:
                    value, error = (float(point[n].sel(route=route)) for n in (name, f"{name}_se"))
                    cells.append(str(Interval(value, Z95 * error)) if np.isfinite(value) else "–")
                cells.append(f"{float(point[f'{name}_predicted']):.4g}")
            rows.append(cells)
    return rows


def _agreement(dataset: xr.Dataset) -> list[list[str]]:
    """How many z scores are large, and how many would be by chance: a row for each quantity and route."""
    rows = []
    for name in QUANTITIES:
        for route in ROUTES:
            z = dataset[f"{name}_z"].sel(route=route).values
            z = np.abs(z[np.isfinite(z)])
            if not len(z):
                continue
            chance = [len(z) * 2 * float(special.ndtr(-bound)) for bound in (2.0, 3.0)]
            counts = [str(len(z)), f"{(z > 2).sum()}", f"{chance[0]:.1f}", f"{(z > 3).sum()}", f"{chance[1]:.2f}"]
            rows.append([name.replace("_", " "), route, *counts, f"{z.max():.2f}"])
    return rows
