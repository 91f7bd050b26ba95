"""assert_moments_match(): every measured quantity with a closed form lies where the closed form says.

A measured value matches its prediction if it lies within the margin of `fganalysis.statistics.rare_tails`. Alpha is
shared evenly among both sides of all comparisons (Bonferroni), so a right prediction fails with probability at most
alpha. A discrepancy as large as the margin is found with probability one half, and a larger one more often. Both rates
are reported.

The margins allow for skewed guesses, and for longer guesses than those that were drawn, as far as 256 or more guesses
can show them. If the moments of an estimator come from events rarer than about one guess in a hundred, more guesses are
needed. `wang2025_bias` and `wang2025_variance` are left out, because a sample keeps too little for their far tails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from fganalysis.arguments import check_kind, check_number, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.measuring.sample import sample
from fganalysis.measuring.sound_guesses import check_arguments
from fganalysis.results import schema
from fganalysis.statistics.rare_tails import MARGINS, RawSample

LEAST_GUESSES_TO_MATCH = 256
MOMENT_ROUNDING = 1e3  # in units of the data type's precision, relative to the natural size of the quantity


@dataclass(frozen=True)
class MomentsMatch:
    """The result that all measured quantities match, with the error rates of this statement.

    Attributes:
        n_comparisons: the number of compared values, over all quantities, spaces and layers.
        alpha: the largest probability with which a right prediction fails.
        detectable: for each quantity, the relative discrepancy that is found with probability at least one half in any
            space and layer. Quantities that are predicted to be zero everywhere are left out.
    """

    estimator: str
    seed: int
    n_guesses: int
    alpha: float
    n_comparisons: int
    detectable: dict[str, float]

    def __str__(self) -> str:
        discrepancies = ", ".join(f"{quantity} {size:.2g}" for quantity, size in self.detectable.items())
        return (
            f"{self.estimator}: {self.n_comparisons} comparisons with closed forms, all within their margins. A right "
            f"prediction fails with probability at most {self.alpha:g}. A wrong one fails at least half the time from "
            f"these relative discrepancies on: {discrepancies}. Seed {self.seed}, {self.n_guesses} guesses."
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
    """Samples the estimator and compares every quantity that has a closed form with its prediction.

    Args:
        estimator: a key of `ESTIMATORS` or an instance.
        predicted: `fganalysis.predict`'s Dataset, or any with names of `schema.QUANTITIES` over (space, layer); NaN
            where there is no closed form.
        snapshot, n_guesses, seed: as in `sample`; at least 256 guesses.
        alpha: probability of failing a right prediction.

    Returns:
        The number of comparisons, and the rates of false alarms and of missed discrepancies.

    Raises:
        AssertionError: with the worst mismatches and the seed.
        ValueError: alpha outside (0, 1), too few guesses, no snapshot, no Dataset, nothing to compare, or a prediction
            that is infinite or has a name, space, layer or dimension that a sample has not.
    """
    check_arguments(snapshot, seed)
    check_whole("n_guesses", n_guesses, LEAST_GUESSES_TO_MATCH)
    check_number("alpha", alpha, above=0, below=1)
    aligned = _aligned(predicted, snapshot)
    measured = sample(snapshot, estimator, n_guesses, seed)
    known = {name: measured[name].notnull() & values.notnull() for name, values in aligned.items()}
    n_comparisons = sum(int(both.sum()) for both in known.values())
    if n_comparisons == 0:
        raise ValueError("there is nothing to compare: predicted has no finite value of a quantity that was measured")
    compared = {
        name: _compared(name, measured, aligned[name].where(both), alpha / (2 * n_comparisons))
        for name, both in known.items()
    }
    failures = sorted((failure for name, table in compared.items() for failure in _failures(name, table)), reverse=True)
    if failures:
        listed = "; ".join(text for _, text in failures[:5])
        raise AssertionError(
            f"{label(estimator)}: {len(failures)} measured quantities do not match: {listed} (seed {seed}, {n_guesses} "
            f"guesses, {n_comparisons} comparisons)"
        )
    detectable = {name: _detectable(table) for name, table in compared.items()}
    return MomentsMatch(
        estimator=label(estimator),
        seed=seed,
        n_guesses=n_guesses,
        alpha=alpha,
        n_comparisons=n_comparisons,
        detectable={name: size for name, size in detectable.items() if np.isfinite(size)},
    )


def _aligned(predicted: xr.Dataset, snapshot: Snapshot) -> dict[str, xr.DataArray]:
    """The quantities of a prediction that can be compared, over (space, layer) in the order of the measurement.

    Raises ValueError for names, spaces, layers and dimensions that a sample does not have, rather than ignore them.
    """
    check_kind("predicted", predicted, xr.Dataset, "an xarray.Dataset, such as fga.predict returns")
    unknown = [name for name in predicted.data_vars if name not in schema.variables()]
    if unknown:
        raise ValueError(f"predicted has the unknown quantity {unknown[0]!r}; known ones: {', '.join(MARGINS)}")
    places = {schema.SPACE: list(schema.SPACES), schema.LAYER: [*snapshot.layers, schema.ALL_LAYERS]}
    aligned = {}
    for name in MARGINS:
        if name not in predicted:
            continue
        values = predicted[name]
        if set(values.dims) != set(places) or not set(places) <= set(values.indexes):
            raise ValueError(f"predicted {name!r} must have the dimensions space and layer and their labels only")
        for dim, labels in places.items():
            strange = [place for place in values[dim].values.tolist() if place not in labels]
            if strange:
                raise ValueError(f"predicted has the {dim} {strange[0]!r}; known ones: {', '.join(labels)}")
        if np.isinf(values).any():
            raise ValueError(f"predicted {name!r} is infinite somewhere: use NaN where there is no closed form")
        aligned[name] = values.reset_coords(drop=True).reindex(places).transpose(*places)
    return aligned


def _compared(quantity: str, measured: xr.Dataset, predicted: xr.DataArray, tail: float) -> pd.DataFrame:
    """A row for each (space, layer) with a prediction.

    measured, error and predicted are as reported. The other columns are on the scale of the comparison: the difference
    of measurement and prediction, its margins below and above (with rounding errors), and the prediction or NaN where
    it is zero.
    """
    squares = measured["gradient_norm"].values ** 2
    p = measured["inner_product"].values
    n_groups = measured.sizes[schema.GROUP]
    raw = RawSample(
        inner_product=p,
        squared_length=measured["squared_norm"].values,
        gram=measured["gram"].values,
        group_of_guess=(np.arange(p.shape[-1]) // measured.attrs["block_size"]) % n_groups,
        squared_gradient=np.where(squares > 0, squares, np.nan),
        variance=measured["variance"].values,
        variance_error=measured["variance" + schema.SE].values,
    )
    margin = raw.margin(quantity, predicted.values, tail)
    size = squares if schema.QUANTITIES[quantity].units != "1" else np.ones_like(squares)
    precision = MOMENT_ROUNDING * float(np.finfo(measured.attrs["dtype"]).eps)
    rounding = precision * np.maximum(size, np.abs(margin.prediction))
    columns = {
        "measured": measured[quantity].values,
        "error": measured[quantity + schema.SE].values,
        "predicted": predicted.values,
        "difference": margin.value - margin.prediction,
        "below": margin.below + rounding,
        "above": margin.above + rounding,
        "compared": np.where(np.abs(margin.prediction) > rounding, np.abs(margin.prediction), np.nan),
    }
    table = xr.Dataset({name: (predicted.dims, values) for name, values in columns.items()}, coords=predicted.coords)
    frame = table.to_dataframe().dropna(subset=["predicted"])
    frame.attrs["power"] = margin.power
    return frame


def _failures(quantity: str, table: pd.DataFrame) -> list[tuple[float, str]]:
    failures = []
    excess = np.maximum(table["difference"] / table["above"], -table["difference"] / table["below"])
    for (space, layer), row in table[~(excess <= 1)].iterrows():
        measured = f"{row['measured']:.5g} ± {row['error']:.2g}"
        text = f"{quantity} at {space}/{layer}: {measured}, predicted {row['predicted']:.5g}"
        failures.append((float(excess[space, layer]), text))
    return failures


def _detectable(table: pd.DataFrame) -> float:
    """The largest margin relative to its prediction; NaN where every prediction is zero."""
    relative = float((np.maximum(table["below"], table["above"]) / table["compared"]).max())
    return float(1 + relative) ** table.attrs["power"] - 1
