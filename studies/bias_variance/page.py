"""What the page of `studies.bias_variance` says, computed from its DataTree; the sentences are in page.md.j2."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import xarray as xr

import fganalysis as fga
from fganalysis.results.plotting import LEAST_VARIANCE_SHOWN
from fganalysis.results.tables import formatted
from studies.kit import pages

SHOWN = {
    "relative_bias": "bias / ‖G‖",
    "relative_variance": "variance / ‖G‖²",
    "cosine": "cosine",
    "efficiency": "efficiency",
    "descent_probability": "descent probability",
}


def page(tree: xr.DataTree, log: xr.Dataset, settings: Mapping[str, object]) -> str:
    """The page of one network; ``settings`` are those of the run, with its width and seed."""
    return pages.render("bias_variance", values(tree, log, settings))


def values(tree: xr.DataTree, log: xr.Dataset, settings: Mapping[str, object]) -> dict[str, object]:
    """Everything that the template names."""
    table = fga.summary(tree)
    weight = table[(table["layer"] == fga.schema.ALL_LAYERS) & (table["space"] == "weight")].copy()
    for suffix in ("", "_se", "_predicted"):
        weight[f"relative_variance{suffix}"] = weight[f"variance{suffix}"] / weight["gradient_norm"] ** 2
    noisy = weight[weight["relative_variance"] > LEAST_VARIANCE_SHOWN]
    shown = formatted(weight, list(SHOWN)).drop(columns=["space", "layer"]).rename(columns=SHOWN)
    agreement = fga.agreement(tree)
    return {
        "settings": settings,
        "steps": [int(step) for step in tree["measured"].to_dataset()["step"].values],
        "accuracy": {part: float(log[f"{part}_accuracy"][-1]) for part in ("train", "test")},
        "best": [_best(own) for _, own in noisy.groupby("step")],
        "header": [str(column) for column in shown.columns],
        "rows": _cells(shown),
        "agreement_header": [str(column).replace("|z|", "abs(z)") for column in agreement.columns],
        "agreement": _cells(agreement),
    }


def _best(own: pd.DataFrame) -> dict[str, object]:
    """The estimator with noise of which one guess makes the largest share of the exact step's progress, at one step."""
    row = own.loc[own["efficiency"].idxmax()]
    return {"step": int(row["step"]), "estimator": str(row["estimator"]), "efficiency": float(row["efficiency"])}


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """The rows of a table as text; a bar would end a cell of Markdown."""
    return [[str(value).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)]
