"""Tables from a diagnosis: a row per estimator, space and layer; and how far measurement and theory are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from fganalysis import schema
from fganalysis.intervals import Z95

TABLE = (
    "gradient_norm",
    "relative_bias",
    "shrinkage",
    "directional_bias",
    "variance",
    "mse",
    "cosine",
    "efficiency",
    "best_scale",
    "descent_probability",
)
PREDICTED = "_predicted"
# Compared on the squared scale: at zero bias the norm's distribution is not symmetric, its square's nearly is.
COMPARED = (
    "squared_bias",
    "shrinkage",
    "directional_bias",
    "variance",
    "mse",
    "cosine",
    "efficiency",
    "best_scale",
    "descent_probability",
    "wang2025_variance",
)
NOT_NEGATIVE = ("squared_bias", "directional_bias")
ROUNDING = 2e-5  # Rounding of single-precision sums, relative to the squared gradient norm, 1, or the value itself.
RELATIVE_ROUNDING = ("shrinkage", "cosine", "efficiency", "best_scale")


def summary(tree: xr.DataTree, quantities: Sequence[str] = TABLE) -> pd.DataFrame:
    """A row per step, estimator, space and layer; a column per quantity, its error, its interval and its prediction.

    Spaces in which an estimator makes no guess are left out. Numbers are not rounded; see `formatted`.

    Args:
        tree: from `fganalysis.diagnose`. quantities: names from `fganalysis.schema`.

    Raises:
        ValueError: an unknown quantity, or a tree without /measured.
    """
    measured, predicted = node(tree, "measured"), node(tree, "predicted")
    known = schema.QUANTITIES | schema.EXACT | schema.QUANTILES
    unknown = [name for name in quantities if name not in known]
    if unknown:
        raise ValueError(f"unknown quantity {unknown[0]!r}; known ones: {', '.join(sorted(known))}")
    columns: dict[str, xr.DataArray] = {}
    for name in quantities:
        # What follows from the snapshot alone is not sampled: it is among the predictions only.
        columns[name] = measured[name] if name in measured else predicted[name]
        if name in schema.QUANTITIES:
            columns |= {name + suffix: measured[name + suffix] for suffix in (schema.SE, schema.LOW, schema.HIGH)}
            # Results that were stored before intervals said so of themselves do not: NaN, neither wide nor not.
            unsaid = xr.full_like(measured[name], np.nan)
            for suffix in (schema.WIDE, schema.SHORT):
                columns[name + suffix] = measured.get(name + suffix, unsaid)
            columns[name + PREDICTED] = predicted[name]
    table = xr.Dataset(columns)
    dims = [dim for dim in (schema.STEP, schema.ESTIMATOR, schema.SPACE, schema.LAYER) if dim in table.dims]
    frame = table.to_dataframe(dim_order=dims).reset_index()
    return frame.dropna(subset=[q for q in ("mse", "variance", quantities[-1]) if q in columns][:1], ignore_index=True)


def formatted(frame: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    """The same rows as text: ``measured ± standard error | predicted``, rounded by the standard error.

    ``±≤`` where the interval is wide, so that it may cover far more than 95 %; ``±≥`` where it may be too short.
    """
    keys = [name for name in (schema.STEP, schema.ESTIMATOR, schema.SPACE, schema.LAYER) if name in frame]
    shown = frame[keys].copy()
    for name in quantities:
        shown[name] = [
            _cell(*(row.get(name + suffix, np.nan) for suffix in ("", schema.SE, PREDICTED, schema.WIDE, schema.SHORT)))
            for _, row in frame.iterrows()
        ]
    return shown


def agreement(tree: xr.DataTree) -> pd.DataFrame:
    """How often |z| exceeds 3 and 4, a row per quantity, beside what chance would give.

    See `z_scores`. z counts as 0 where difference and error are both below the rounding of single precision.
    """
    scores = z_scores(tree)
    rows = []
    for name in COMPARED:
        z = scores[name].values
        z = np.abs(z[~np.isnan(z)])
        if not len(z):
            continue
        expected = [len(z) * 2 * float(special.ndtr(-bound)) for bound in (3.0, 4.0)]
        rows.append(
            {
                "quantity": name,
                "compared": len(z),
                "|z|>3": int((z > 3).sum()),
                ">3 by chance": round(expected[0], 2),
                "|z|>4": int((z > 4).sum()),
                ">4 by chance": round(expected[1], 3),
                "largest |z|": round(float(z.max()), 2),
                "rms z": round(float(np.sqrt((z**2).mean())), 3),
            }
        )
    return pd.DataFrame(rows)


def error_towards(prediction: xr.DataArray, measured: xr.Dataset, name: str) -> xr.DataArray:
    """What a difference from the prediction is measured by, in `z_scores`."""
    if name in NOT_NEGATIVE:
        return measured[name + schema.SE]
    side = xr.where(measured[name] > prediction, measured[name + schema.LOW], measured[name + schema.HIGH])
    return abs(measured[name] - side) / Z95


def z_scores(tree: xr.DataTree) -> xr.Dataset:
    """(measured − predicted)/error of every quantity with a closed form, over the dimensions of the result.

    The error is 1/1.96 of the way to the bound of the measured interval on the side of the prediction. Intervals of
    squared and directional bias end at zero, so for these two it is the standard error.
    0 where difference and error are both no more than the rounding of single precision (guesses without variance), and
    ±∞ where there is no error and yet a difference: a wrong exact estimator is as wrong as can be.
    """
    measured, predicted = node(tree, "measured"), node(tree, "predicted")
    # Each step, space and layer has a scale of its own: they differ by orders of magnitude, and rounding with them.
    squares = measured["gradient_norm"] ** 2 + predicted["squared_bias"].fillna(0.0)
    scores = {}
    for name in COMPARED:
        difference, error = measured[name] - predicted[name], error_towards(predicted[name], measured, name)
        known = schema.QUANTITIES[name]
        scale: xr.DataArray = xr.ones_like(difference)
        if name in RELATIVE_ROUNDING:
            scale = abs(predicted[name])
        elif known.units != "1":
            scale = squares if schema.SPACE in known.dims else squares.sel({schema.SPACE: "activation"}, drop=True)
        rounded = (abs(difference) <= ROUNDING * scale) & (error <= ROUNDING * scale)
        certain = xr.where(difference > 0, np.inf, -np.inf).where((error == 0) & difference.notnull())
        z = xr.where(error > 0, difference / error.where(error > 0), certain)
        scores[name] = xr.where(rounded, 0.0, z)
    return xr.Dataset(scores)


def node(tree: xr.DataTree, name: str) -> xr.Dataset:
    """The /measured or /predicted part of a diagnosis, with step and estimator as dimensions.

    Raises:
        ValueError: a tree without it.
    """
    if name not in tree.children:
        raise ValueError(f"the tree has no /{name} node: give what fganalysis.diagnose returns")
    dataset = tree[name].to_dataset()
    for dim in (schema.ESTIMATOR, schema.STEP):
        if dim not in dataset.dims:
            dataset = dataset.expand_dims(dim)
    return dataset


def _cell(value: float, error: float, predicted: float, wide: float, short: float) -> str:
    if np.isnan(value):
        return "–"
    digits = 3
    if error <= 1e-6 * max(abs(value), 0.1):
        # What is left of an exact estimator is rounding.
        text = f"{0.0 if abs(value) < 1e-4 else value:.3g} exact"
    else:
        if error > 0 and value != 0:
            digits = int(np.clip(np.ceil(np.log10(abs(value) / error)) + 1, 1, 6)) if abs(value) > error else 1
        sign = "±≥" if short == 1 else "±≤" if wide == 1 else "±"
        text = f"{value:.{digits}g}" + (f" {sign} {error:.1g}" if np.isfinite(error) else "")
    return text + (f" | {predicted:.{max(digits, 2)}g}" if np.isfinite(predicted) else "")
