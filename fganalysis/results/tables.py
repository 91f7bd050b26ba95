"""Tables from a diagnosis, a row per estimator, space and layer; and comparisons of measurement and theory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from operator import or_

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from fganalysis.arguments import check_kind, check_names, described, listed
from fganalysis.results import html_table, schema
from fganalysis.statistics.intervals import Z95

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
)
KEYS = (schema.STEP, schema.ESTIMATOR, schema.SPACE, schema.LAYER)
REMARKS = (schema.NOT_LOOKED_AT, schema.NOT_MEASURED)
NAMED_IN_REMARK = 2  # Parameters that a remark names.
NOT_NEGATIVE = ("squared_bias", "directional_bias")
# Rounding of single-precision sums, relative to the squared gradient norm, to 1, or to the value itself.
SINGLE_PRECISION_ROUNDING = 2e-5
RELATIVE_ROUNDING = ("shrinkage", "cosine", "efficiency", "best_scale")


class Summary(pd.DataFrame):
    """A frame that notebooks show with each number's interval and prediction in its cell; otherwise any other frame."""

    @property
    def _constructor(self) -> type[Summary]:
        return Summary

    def _repr_html_(self) -> str:
        """As many rows as pandas shows."""
        most = pd.get_option("display.max_rows") or len(self)
        more = f"\n<p>{len(self)} rows, of which the first {most} are shown.</p>" if len(self) > most else ""
        return html_table.of(self.head(most), KEYS) + more


def summary(tree: xr.DataTree, quantities: Sequence[str] = TABLE) -> pd.DataFrame:
    """A row per step, estimator, space and layer; a column per quantity, its error, its interval and its prediction.

    Spaces in which an estimator makes no guess are left out. Unknown numbers are NaN. Numbers are not rounded; see
    `formatted`. A notebook shows every number with its interval. Two columns exist only if they are not empty:
    ``not_looked_at`` names trainable parameters that are in no layer, and ``not_measured`` says why a row is NaN.

    Args:
        tree: from `fganalysis.diagnose`. quantities: names from `fganalysis.schema`.

    Raises:
        ValueError: an unknown quantity, or a tree without /measured, /predicted or these quantities in them.
    """
    measured, predicted = node(tree, "measured"), node(tree, "predicted")
    check_names("quantities", quantities)
    known = schema.QUANTITIES | schema.EXACT | schema.QUANTILES
    unknown = [name for name in quantities if name not in known]
    if unknown:
        raise ValueError(f"unknown quantity {described(unknown[0])}; known ones: {listed(sorted(known), 30)}")
    table = _columns(measured, predicted, quantities)
    guessed = _guessed(measured)
    failed = ~guessed.any(schema.SPACE)
    shown = guessed | failed
    if schema.SPACE not in table.dims:
        # Quantities of a layer at the activations, which all layers together do not have.
        shown = shown.sel({schema.SPACE: shown[schema.SPACE] == "activation"}).any(schema.SPACE)
        table = table.drop_sel({schema.LAYER: schema.ALL_LAYERS}, errors="ignore")
    dims = [dim for dim in KEYS if dim in table.dims]
    frame = table.assign(_shown=shown, _failed=failed).to_dataframe(dim_order=dims).reset_index()
    frame = frame[frame["_shown"]].reset_index(drop=True)
    return Summary(_with_remarks(frame, measured).drop(columns=["_shown", "_failed"]))


def _with_remarks(frame: pd.DataFrame, measured: xr.Dataset) -> pd.DataFrame:
    unseen = not_looked_at(measured)
    if unseen:
        frame[schema.NOT_LOOKED_AT] = unseen
    if frame["_failed"].any():
        reasons = json.loads(str(measured.attrs.get(schema.NOT_MEASURED, "{}")))
        reason_of_row = frame[schema.ESTIMATOR].map(lambda name: reasons.get(name, "no reason is stored"))
        frame[schema.NOT_MEASURED] = reason_of_row.where(frame["_failed"], "")
    return frame


def _columns(measured: xr.Dataset, predicted: xr.Dataset, quantities: Sequence[str]) -> xr.Dataset:
    """The columns of every quantity: value, error, interval, flags and prediction."""
    columns: dict[str, xr.DataArray] = {}
    for name in quantities:
        # Quantities that follow from the snapshot alone are not sampled and stand among the predictions only.
        sampled = name in schema.QUANTITIES or name in measured
        columns[name] = _variable(measured if sampled else predicted, name)
        if name in schema.QUANTITIES:
            parts = [name + suffix for suffix in (schema.SE, schema.LOW, schema.HIGH)]
            columns |= {part: _variable(measured, part) for part in parts}
            # Results stored by older versions have no such flags: NaN.
            unsaid = xr.full_like(measured[name], np.nan)
            for suffix in (schema.WIDE, schema.SHORT):
                columns[name + suffix] = measured.get(name + suffix, unsaid)
            columns[name + PREDICTED] = _variable(predicted, name)
    return xr.Dataset(columns)


def not_looked_at(measured: xr.Dataset) -> str:
    """The trainable parameters that are in no layer: the first names, and how many more; empty where there are none."""
    return listed(json.loads(str(measured.attrs.get(schema.NOT_LOOKED_AT, "[]"))), NAMED_IN_REMARK)


def formatted(frame: pd.DataFrame, quantities: Sequence[str]) -> pd.DataFrame:
    """The same rows as text: ``measured ± standard error | predicted``, rounded by the standard error.

    ``±≤`` marks a wide interval, which may cover far more than 95 %, and ``±≥`` an interval that may be too short.
    Numbers below the rounding errors of an exact estimator are printed as 0; these errors are relative to the column
    ``gradient_norm`` if there is one.

    Args:
        frame: from `summary`, or with your own columns. quantities: names of its columns.

    Raises:
        ValueError: no table, or a column that it does not have.
    """
    check_kind("frame", frame, pd.DataFrame, "the table that fganalysis.results.tables returns")
    check_names("quantities", quantities, [str(name) for name in frame.columns])
    shown = frame[[name for name in KEYS if name in frame]].copy()
    for name in quantities:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise ValueError(f"the column {name!r} has no numbers that could be rounded")
        shown[name] = [_cell(row, name) for _, row in frame.iterrows()]
    remarks = [name for name in REMARKS if name in frame]
    return shown.assign(**{name: frame[name] for name in remarks})


def _size(name: str, gradient_norm: float) -> float:
    """The size of a quantity to which rounding is relative: 1 without a unit, or where it is unknown."""
    units = schema.QUANTITIES[name].units if name in schema.QUANTITIES else "1"
    power = {schema.GRADIENT_UNITS: 1, schema.SQUARED_UNITS: 2}.get(units, 0)
    return gradient_norm**power if gradient_norm > 0 else 1.0


def agreement(tree: xr.DataTree) -> pd.DataFrame:
    """How often the size of z exceeds 3 and 4, and how often it would by chance: a row per quantity.

    See `z_scores`. z counts as 0 where difference and error are both below the rounding of single precision. A quantity
    without a closed form has no row.

    Raises:
        ValueError: a tree without /measured or /predicted, or in which nothing was measured.
    """
    scores = z_scores(tree)
    measured = node(tree, "measured")
    if not any(bool(measured[name].notnull().any()) for name in COMPARED):
        raise ValueError("the tree has no number in /measured, so nothing can be compared with its predictions")
    return counted(scores)


def counted(scores: xr.Dataset) -> pd.DataFrame:
    """The rows of `agreement`, from z by quantity."""
    rows = []
    for name in scores.data_vars:
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
    """The error by which `z_scores` divides the difference from the prediction."""
    if name in NOT_NEGATIVE:
        return measured[name + schema.SE]
    side = xr.where(measured[name] > prediction, measured[name + schema.LOW], measured[name + schema.HIGH])
    return abs(measured[name] - side) / Z95


def z_scores(tree: xr.DataTree) -> xr.Dataset:
    """(measured − predicted)/error of every quantity with a closed form, over the dimensions of the result.

    The error is 1/1.96 of the way to the bound of the measured interval on the side of the prediction. Intervals of
    squared and directional bias end at zero, so for these two it is the standard error.
    z is 0 where difference and error are both within the rounding of single precision (guesses without variance), and
    ±∞ where there is a difference without an error, as of a wrong estimator without variance.

    Raises:
        ValueError: a tree without /measured, /predicted or one of the compared quantities in them.
    """
    measured, predicted = node(tree, "measured"), node(tree, "predicted")
    # Metrics that were registered after a result was made are not in it.
    compared = [*COMPARED, *(name for name in schema.ALSO_COMPARED if name in measured and name in predicted)]
    parts = [name + suffix for name in compared for suffix in ("", schema.SE, schema.LOW, schema.HIGH)]
    for dataset, names in ((measured, ["gradient_norm", *parts]), (predicted, compared)):
        for name in names:
            _variable(dataset, name)
    return scores(measured, predicted, compared)


def scores(measured: xr.Dataset, predicted: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """The z of `z_scores` for quantities that both Datasets have; their dimensions are those of the quantities.

    Where ``predicted`` has ``x_se``, the error of a prediction, it is part of the error of z.
    """
    return xr.Dataset({name: _score(measured, predicted, name) for name in names})


def _score(measured: xr.Dataset, predicted: xr.Dataset, name: str) -> xr.DataArray:
    difference, error = measured[name] - predicted[name], error_towards(predicted[name], measured, name)
    if name + schema.SE in predicted:
        error = (error**2 + predicted[name + schema.SE] ** 2) ** 0.5
    scale = _scale(measured, predicted, name)
    certain = xr.where(difference > 0, np.inf, -np.inf).where((error == 0) & difference.notnull())
    z = xr.where(error > 0, difference / error.where(error > 0), certain)
    rounded = (abs(difference) <= SINGLE_PRECISION_ROUNDING * scale) & (error <= SINGLE_PRECISION_ROUNDING * scale)
    return xr.where(rounded, 0.0, z)


def _scale(measured: xr.Dataset, predicted: xr.Dataset, name: str) -> xr.DataArray:
    """The size to which rounding is relative; it differs between steps, spaces and layers by orders of magnitude."""
    known = schema.QUANTITIES.get(name)
    if known is None or name in RELATIVE_ROUNDING or (known.units != "1" and "gradient_norm" not in measured):
        return abs(predicted[name])
    if known.units == "1":
        return xr.ones_like(predicted[name])
    squares = measured["gradient_norm"] ** 2
    if "squared_bias" in predicted:
        squares = squares + predicted["squared_bias"].fillna(0.0)
    return squares if schema.SPACE in known.dims else squares.sel({schema.SPACE: "activation"}, drop=True)


def node(tree: xr.DataTree, name: str) -> xr.Dataset:
    """The /measured or /predicted part of a diagnosis, with step and estimator as dimensions.

    Raises:
        ValueError: no tree, a tree without the part, or a part that is not over space and layer.
    """
    check_kind("tree", tree, xr.DataTree, "what fganalysis.diagnose returns")
    if name not in tree.children:
        raise ValueError(f"the tree has no /{name} node: give what fganalysis.diagnose returns")
    dataset = tree[name].to_dataset()
    missing = [dim for dim in KEYS if dim not in dataset.coords]
    if missing:
        raise ValueError(f"/{name} has no coordinate {missing[0]!r}: give what fganalysis.diagnose returns")
    for dim in KEYS:
        if dim not in dataset.dims:
            dataset = dataset.expand_dims(dim)
    return dataset


def _variable(dataset: xr.Dataset, name: str) -> xr.DataArray:
    if name not in dataset:
        raise ValueError(f"the tree has no variable {name!r}: give what fganalysis.diagnose returns")
    return dataset[name]


def _guessed(measured: xr.Dataset) -> xr.DataArray:
    """Whether an estimator made guesses in a space, (step, estimator, space).

    It did if the lengths of its guesses are known, even where quantities are NaN. In a result without lengths, it did
    if any quantity is known.
    """
    names = ["squared_norm"] if "squared_norm" in measured else list(schema.QUANTITIES)
    known = [measured[name].notnull() for name in names if name in measured and schema.SPACE in measured[name].dims]
    if not known:
        raise ValueError("/measured has no variable that says whether there are guesses: give what diagnose returns")
    kept = (schema.STEP, schema.ESTIMATOR, schema.SPACE)
    return reduce(or_, [array.any([dim for dim in array.dims if dim not in kept]) for array in known])


def _cell(row: pd.Series, name: str) -> str:
    parts = [*(name + suffix for suffix in ("", schema.SE, PREDICTED, schema.WIDE, schema.SHORT)), "gradient_norm"]
    value, error, predicted, wide, short, gradient_norm = (float(row.get(part, np.nan)) for part in parts)
    if np.isnan(value):
        return "–"
    size = _size(name, gradient_norm)
    digits = 3
    if error <= 1e-6 * max(abs(value), 0.1 * size):
        # The numbers of an exact estimator that should be zero are rounding errors.
        text = f"{0.0 if abs(value) < 1e-4 * size else value:.3g} exact"
    else:
        if error > 0 and value != 0:
            digits = int(np.clip(np.ceil(np.log10(abs(value) / error)) + 1, 1, 6)) if abs(value) > error else 1
        sign = "±≥" if short == 1 else "±≤" if wide == 1 else "±"
        text = f"{value:.{digits}g}" + (f" {sign} {error:.1g}" if np.isfinite(error) else "")
    return text + (f" | {predicted:.{max(digits, 2)}g}" if np.isfinite(predicted) else "")
