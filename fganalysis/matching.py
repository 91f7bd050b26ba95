"""assert_moments_match(): every measured quantity with a closed form lies where the closed form says.

A measured value m with standard error SE matches its prediction p where |m − p| ≤ z·SE + rounding, z the normal
quantile at alpha shared evenly among all comparisons (Bonferroni), so that a right prediction fails with probability at
most alpha, as far as the estimates are normal. A discrepancy of z·SE is found with probability one half, a larger one
more often: both rates are stated. Norms of a bias are compared squared, as their estimate is not normal near zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from fganalysis import schema
from fganalysis.estimators import Estimator, label
from fganalysis.intervals import Z95
from fganalysis.sampling import sample
from fganalysis.snapshot import Snapshot

NORMS = ("bias", "relative_bias", "wang2025_bias")
ROUNDING = 1e3  # in units of the data type's precision, relative to the natural size of the quantity


@dataclass(frozen=True)
class MomentsMatch:
    """All of them matched: at which rates.

    Attributes:
        n_comparisons: quantities times spaces and layers. z: standard errors allowed to each.
        alpha: probability at most of failing a right prediction.
        detectable: by quantity, the relative discrepancy that is found with probability one half at least, in whatever
            space and layer it is; quantities that are predicted to be zero everywhere are left out.
    """

    estimator: str
    seed: int
    n_guesses: int
    alpha: float
    n_comparisons: int
    z: float
    detectable: dict[str, float]

    def __str__(self) -> str:
        found = ", ".join(f"{quantity} {size:.2g}" for quantity, size in self.detectable.items())
        return (
            f"{self.estimator}: {self.n_comparisons} comparisons with closed forms within {self.z:.3g} standard "
            f"errors. Fails a right prediction with probability {self.alpha:g} at most, and half the time one that is "
            f"wrong by, relatively, {found}. Seed {self.seed}, {self.n_guesses} guesses."
        )


def assert_moments_match(
    estimator: str | Estimator,
    predicted: xr.Dataset,
    snapshot: Snapshot,
    *,
    n_guesses: int = 4096,
    alpha: float = 1e-3,
    seed: int = 0,
) -> MomentsMatch:
    """Samples the estimator and holds every quantity with a closed form against it.

    Args:
        estimator: a key of `ESTIMATORS` or an instance.
        predicted: `fganalysis.predict`'s Dataset, or any with names of `schema.QUANTITIES` over (space, layer); NaN
            where there is no closed form.
        snapshot, n_guesses, seed: as in `sample`.
        alpha: probability of failing a right prediction.

    Returns:
        The rates of false and of missed failures.

    Raises:
        AssertionError: with the worst mismatches and the seed.
        ValueError: alpha outside (0, 1), or nothing to compare.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    measured = sample(snapshot, estimator, n_guesses, seed)
    precision = ROUNDING * float(np.finfo(measured.attrs["dtype"]).eps)
    compared = {
        quantity: _comparison(quantity, measured, predicted, precision)
        for quantity in schema.QUANTITIES
        if quantity in predicted and quantity in measured
    }
    n_comparisons = sum(len(table) for table in compared.values())
    if n_comparisons == 0:
        raise ValueError("there is nothing to compare: predicted has no finite value of a quantity that was measured")
    z = -float(special.ndtri(alpha / (2 * n_comparisons)))
    context = f"seed {seed}, {n_guesses} guesses, {z:.3g} standard errors allowed over {n_comparisons} comparisons"
    failures = sorted((failure for table in compared.values() for failure in _failures(table, z)), reverse=True)
    if failures:
        listed = "; ".join(text for _, text in failures[:5])
        raise AssertionError(
            f"{label(estimator)}: {len(failures)} measured quantities do not match: {listed} ({context})"
        )
    detectable = {quantity: _detectable(table, z) for quantity, table in compared.items()}
    return MomentsMatch(
        estimator=label(estimator),
        seed=seed,
        n_guesses=n_guesses,
        alpha=alpha,
        n_comparisons=n_comparisons,
        z=z,
        detectable={quantity: size for quantity, size in detectable.items() if np.isfinite(size)},
    )


def _comparison(quantity: str, measured: xr.Dataset, predicted: xr.Dataset, precision: float) -> pd.DataFrame:
    """Measured value, prediction, standard error and rounding error, over (space, layer); NaN where one is missing."""
    names = [quantity, quantity + schema.SE, "gradient_norm"]
    value, error, size = (measured[name].reset_coords(drop=True) for name in names)
    prediction = predicted[quantity].reset_coords(drop=True)
    if quantity in NORMS:
        # The error of a norm is the larger half of an interval whose squares are symmetric: undone here.
        error = error * (2 * value + Z95 * error)
        value, prediction, size = value**2, prediction**2, size**2
    if measured[quantity].attrs["units"] == "1":
        size = xr.ones_like(size)
    elif measured[quantity].attrs["units"] == schema.SQUARED_UNITS:
        size = size**2
    if schema.SPACE not in value.dims:
        size = size.sel(space="activation", drop=True)
    value, prediction, error, size = xr.align(value, prediction, error, size, join="inner")
    rounding = precision * np.maximum(size, np.abs(prediction))
    table = xr.Dataset({"value": value, "prediction": prediction, "error": error, "rounding": rounding})
    frame = table.to_dataframe().replace([np.inf, -np.inf], np.nan).dropna()
    frame.attrs |= {"quantity": quantity + (" squared" if quantity in NORMS else ""), "squared": quantity in NORMS}
    return frame


def _failures(table: pd.DataFrame, z: float) -> list[tuple[float, str]]:
    found = []
    for place, row in table.iterrows():
        excess = abs(row["value"] - row["prediction"]) - row["rounding"]
        if excess > z * row["error"]:
            where = "/".join(str(part) for part in (place if isinstance(place, tuple) else (place,)))
            measured = f"{row['value']:.5g} ± {row['error']:.2g}"
            text = f"{table.attrs['quantity']} at {where}: {measured}, predicted {row['prediction']:.5g}"
            found.append((float(excess / row["error"]) if row["error"] > 0 else np.inf, text))
    return found


def _detectable(table: pd.DataFrame, z: float) -> float:
    """The largest z·SE + rounding relative to a prediction that is not zero; NaN where there is none."""
    rows = table[table["prediction"].abs() > table["rounding"]]
    relative = float(((z * rows["error"] + rows["rounding"]) / rows["prediction"].abs()).max())
    return float(np.sqrt(1 + relative)) - 1 if table.attrs["squared"] else relative
