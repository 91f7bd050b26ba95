"""What the page of `studies.zeroth_order` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from studies.kit import pages
from studies.zeroth_order.directions import PART, SIGMA
from studies.zeroth_order.figures import REFERENCE
from studies.zeroth_order.slips import EXAMPLES, SIZES, SLIPS

SUBSPACES = ("subspace of rank 4", "subspace of rank 16")
COMPARED = ("relative_bias", "relative_variance", "efficiency", "curved_efficiency")
ROUNDING = 1e-6  # Single precision: a relative bias below is none.


def page(tree: xr.DataTree) -> str:
    """The page docs/results/zeroth_order.md."""
    return pages.render("zeroth_order", values(tree))


def values(tree: xr.DataTree) -> dict[str, object]:
    """Everything that the template names."""
    directions, slips = tree["directions"].to_dataset(), tree["slips"].to_dataset()
    last = directions.isel(steps=-1)
    verdicts = slips["verdict"].values.tolist(), slips["mean_verdict"].values.tolist()
    return {
        "settings": tree.attrs,
        "parameters": int(directions.attrs["parameters"]),
        "moments": directions["steps"].values.tolist(),
        "last": int(last["steps"]),
        "reference": REFERENCE,
        "sigma": SIGMA,
        "finite": {
            name: _measured(last.sel(estimator=estimator), "efficiency")
            for name, estimator in (
                ("none", REFERENCE),
                ("pair", f"antithetic pair, σ = {SIGMA:g}"),
                ("one_sided", f"one-sided, σ = {SIGMA:g}"),
            )
        },
        "part": PART,
        "sizes": "-".join(map(str, SIZES)),
        "examples": EXAMPLES,
        "rank_one": _against(last, "rank 1"),
        "subspaces": [_against(last, name) | {"name": name} for name in SUBSPACES],
        "rescaled": _against(last, "subspace of rank 16, rescaled"),
        "scaled": _against(last, "scaled by curvature"),
        "best_guided": _guided(last, max),
        "worst_guided": _guided(last, min),
        "layers": _against(last, "half of the layers"),
        "sparse": _against(last, "a tenth of the weights"),
        "tables": [_table(directions.sel(steps=steps)) for steps in directions["steps"].values],
        "agreement": _agreement(directions),
        "n_slips": slips.sizes["slip"],
        "n_found": verdicts[0].count("biased"),
        "n_exact": verdicts[1].count("unbiased"),
        "not_exact": [
            str(name) for name, verdict in zip(slips["slip"].values, verdicts[1], strict=True) if verdict != "unbiased"
        ],
        "slips": [_slip(slips.sel(slip=name)) for name in slips["slip"].values],
        "mixed": _directional(slips, "one seed for all tensors"),
    }


def _against(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Numbers of an estimator, and ratios to those of unstructured noise; closed forms where there are any."""
    own, other = dataset.sel(estimator=name), dataset.sel(estimator=REFERENCE)

    def ratio(quantity: str) -> float:
        return float(own[quantity] / other[quantity])

    return {
        "variance": ratio("relative_variance_predicted"),
        "efficiency": ratio("efficiency_predicted"),
        "curved": ratio("curved_efficiency_predicted"),
        "bias": float(own["relative_bias_predicted"]),
        "numbers": int(own["numbers"]),
        "numbers_ratio": ratio("numbers"),
    }


def _guided(dataset: xr.Dataset, choose: Callable[..., str]) -> dict[str, Any]:
    """The best or the worst guide, by curved efficiency."""
    names = [str(name) for name in dataset["estimator"].values if str(name).startswith("guided")]
    chosen = choose(names, key=lambda name: float(dataset["curved_efficiency_predicted"].sel(estimator=name)))
    return {"name": chosen} | _against(dataset, chosen)


def _table(dataset: xr.Dataset) -> dict[str, object]:
    rows = []
    for name in dataset["estimator"].values:
        own = dataset.sel(estimator=name)
        row = [str(name), f"{int(own['numbers'])}"]
        for quantity in COMPARED:
            row += [_measured(own, quantity), _number(float(own[f"{quantity}_predicted"]))]
        row.insert(6, _measured(own, "cosine"))
        rows.append(row)
    return {
        "steps": int(dataset["steps"]),
        "loss": float(dataset["loss"]),
        "rank": float(dataset["effective_rank"]),
        "rows": rows,
    }


def _measured(own: xr.Dataset, quantity: str) -> str:
    value, low, high = (float(own[quantity + suffix]) for suffix in ("", "_low", "_high"))
    if not np.isfinite(value):
        return "–"
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "∞" if value == np.inf else "–"
    return "0" if abs(value) < ROUNDING else f"{value:.3g}"


def _agreement(dataset: xr.Dataset) -> list[dict[str, object]]:
    """In how many of the comparisons the interval holds the closed form."""
    found = []
    for quantity in COMPARED:
        predicted, low, high = (dataset[quantity + suffix].values for suffix in ("_predicted", "_low", "_high"))
        known = np.isfinite(predicted) & np.isfinite(low)
        slack = ROUNDING * np.abs(predicted) + (ROUNDING if quantity == "relative_bias" else 0.0)
        inside = known & (predicted >= low - slack) & (predicted <= high + slack)
        found.append({"name": quantity.replace("_", " "), "known": int(known.sum()), "inside": int(inside.sum())})
    return found


def _slip(own: xr.Dataset) -> list[str]:
    slip = SLIPS[str(own["slip"].item())]
    row = [str(own["slip"].item()), slip.wrong, slip.mean]
    for quantity in ("shrinkage", "relative_bias"):
        row += [_measured(own, quantity), f"{float(own[f'{quantity}_exact']):.3g}"]
    row.append(f"{own['verdict'].item()} ({int(own['verdict_guesses'])})")
    row.append(
        f"{own['mean_verdict'].item()} to within {float(own['mean_bound']):.2g} ({int(own['mean_verdict_guesses'])})"
    )
    return row


def _directional(dataset: xr.Dataset, name: str) -> float | None:
    if name not in dataset["slip"].values:
        return None
    return float(dataset["directional_bias_exact"].sel(slip=name))
