"""What the page of `studies.facts` says, computed from its DataTree; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from studies.facts.cells import METRICS
from studies.kit import pages

# At default initialisation a step back through a layer leaves 1/6 of the squared gradient, whatever the width.
EXPECTED = (1 + 6 + 36 + 216, 1 + 6 + 36, 1 + 6)
EXACT = 1e-12  # Below is rounding.
ALPHA = 0.01  # Of the whole page: the largest |z| of as many independent comparisons is below the bound.


def page(tree: xr.DataTree) -> str:
    """The page docs/results/facts.md."""
    return pages.render("facts", values(tree))


def values(tree: xr.DataTree) -> dict[str, object]:
    """Everything that the template names."""
    same_law, joint_pass = tree["same_law"].to_dataset(), tree["joint_pass"].to_dataset()
    tables = {number: tree[f"table_{number}"].to_dataset() for number in (2, 5)}
    z = _scores(same_law, joint_pass)
    ratio = joint_pass["ratio_predicted"].sel(inputs="gaussian").isel(layer=0)
    return {
        "n_compared": len(z),
        "largest": float(z.max()),
        "agrees": bool(z.max() < special.ndtri(1 - ALPHA / 2 / len(z))),
        "distance": float(same_law["covariance_distance"].max()),
        "ratio": float(ratio.mean()),
        "expected": EXPECTED[0],
        "same_law": _same_law(same_law),
        "n_seeds": joint_pass.sizes["seed"],
        "joint_pass": _joint_pass(joint_pass),
        "tables": [(number, table.attrs, _table(table)) for number, table in tables.items()],
    }


def _scores(same_law: xr.Dataset, joint_pass: xr.Dataset) -> NDArray[np.float64]:
    """|measured − predicted| in standard errors, of everything in facts 1 to 4 that has a sampling error."""
    found = []
    for dataset, names in ((same_law, ("relative_bias", "relative_variance")), (joint_pass, ("ratio",))):
        for name in names:
            z = abs(dataset[name] - dataset[f"{name}_predicted"]) / dataset[f"{name}_se"]
            found.append(z.to_numpy().ravel())
    scores = np.concatenate(found)
    return scores[np.isfinite(scores)]


def _same_law(dataset: xr.Dataset) -> list[list[str]]:
    rows = []
    for name in dataset["guess_kind"].to_numpy():
        for number, layer in enumerate(dataset["layer"].to_numpy(), 1):
            own = dataset.sel(guess_kind=name, layer=layer)
            shown = [_number(own, quantity) for quantity in ("relative_bias", "relative_variance")]
            distance = float(own["covariance_distance"])
            rows.append([str(name), str(number), *shown, "–" if np.isnan(distance) else f"{distance:.1e}"])
    return rows


def _joint_pass(dataset: xr.Dataset) -> list[list[str]]:
    z = abs(dataset["ratio"] - dataset["ratio_predicted"]) / dataset["ratio_se"]
    rows = []
    for kind in dataset["inputs"].to_numpy():
        for index, layer in enumerate(dataset["layer"].to_numpy()):
            own = dataset["ratio_predicted"].sel(inputs=kind, layer=layer)
            largest = float(z.sel(inputs=kind, layer=layer).max())
            spread = f"{float(own.mean()):.1f} ± {float(own.std()):.1f}"
            rows.append([str(kind), str(index + 1), spread, f"{largest:.2f}", str(EXPECTED[index])])
    return rows


def _table(table: xr.Dataset) -> list[list[str]]:
    rows = []
    for name in table["guess_kind"].to_numpy():
        own = table.sel(guess_kind=name).isel(layer=0)
        for metric in METRICS:
            printed, predicted = float(own[f"{metric}_printed"]), float(own[f"{metric}_predicted"])
            # What is printed of an unbiased guess's bias is rounding.
            ratio = "–" if np.isnan(printed) or predicted < EXACT else f"{predicted / printed:.2g}"
            shown = _number(own, metric) if metric in own else f"– \\| {predicted:.4g}"
            printed_text = "–" if np.isnan(printed) else f"{printed:.3g}"
            rows.append([str(name), metric.replace("_", " "), shown, printed_text, ratio])
    return rows


def _number(own: xr.Dataset, name: str) -> str:
    """Measured ± standard error | predicted."""
    predicted = float(own[f"{name}_predicted"])
    shown = "0" if predicted < EXACT else f"{predicted:.3g}"
    return f"{float(own[name]):.3g} ± {float(own[f'{name}_se']):.1g} \\| {shown}"
