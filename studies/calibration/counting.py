"""How often intervals hold the truth, counted over many samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate

Array = NDArray[np.float64]
ROUNDING = 1e-9  # Relative: truths and bounds of what does not vary differ by so much.
NOTHING = 1e-14  # Of a gradient of about unit length: values that differ by less do so by rounding.
LEVELS = np.linspace(0.005, 0.995, 100)  # Of the quantiles of z that are kept.
WORDS = {
    "above_truth": "samples whose interval lies above the truth",
    "below_truth": "samples whose interval lies below the truth",
    "missing": "samples without an interval",
    "said_wide": "samples whose interval is said to be wide",
    "said_short": "samples whose interval is said to be perhaps too short",
    "repeats": "samples",
    "truth": "true value",
    "truth_is_closed_form": "1 where the truth is a closed form, 0 where it is the mean of all samples",
    "z_quantile": "quantile over samples of (value - truth)/(half-width/1.96)",
}


def counted(parts: Sequence[tuple[Estimate, Array]], exact: Array, floor: float = 0.0) -> xr.Dataset:
    """Counts over the samples of all parts, over (space, layer), and the quantiles of their z scores.

    parts: estimates (repeat, space, layer) with their scores, NaN where the score is that of the estimate. exact: the
    truth, (space, layer), or (repeat, space, layer) where each sample has another; NaN where none is known, and the
    mean of all samples takes its place. floor: a size of the truth of which differences are rounding errors.
    """
    value, low, high = (
        np.concatenate([getattr(estimate, field) for estimate, _ in parts]) for field in ("value", "low", "high")
    )
    wide, short = (
        np.concatenate([np.broadcast_to(getattr(estimate, said), estimate.value.shape) for estimate, _ in parts])
        for said in ("wide", "short")
    )
    known = ~np.isnan(exact)
    reported = ~np.isnan(low)
    with np.errstate(invalid="ignore"):
        pooled = np.where(reported, value, 0.0).sum(0) / reported.sum(0)
    truth = np.where(known, exact, pooled)
    # What is zero by construction, as the part across a gradient of one number, is left with rounding errors of 1.
    margin = ROUNDING * np.maximum(np.abs(truth), floor)
    # Where no repeat differs from another there is no chance, and nothing to calibrate.
    spread = np.ptp(np.where(reported, value, truth), axis=0)
    varies = reported.any(0) & (spread > 2 * _over_grid(margin, value) + NOTHING)
    estimate = Estimate(value, value, low, high)
    score = np.concatenate([score for _, score in parts])
    score = np.where(np.isnan(score), estimate.score(truth), score)
    score = np.where(reported & varies, score, np.nan)
    quantiles = np.full((len(LEVELS), *varies.shape), np.nan)
    quantiles[:, varies] = np.nanquantile(score[:, varies], LEVELS, axis=0)
    grid = (schema.SPACE, schema.LAYER)
    counts = {
        "above_truth": (low > truth + margin).sum(0),
        "below_truth": (high < truth - margin).sum(0),
        "missing": (~reported).sum(0),
        "said_wide": (wide & reported).sum(0),
        "said_short": (short & reported).sum(0),
        "repeats": np.full(varies.shape, len(value)),
    }
    variables: dict[str, tuple] = {key: (grid, np.where(varies, count, np.nan)) for key, count in counts.items()}
    variables |= {
        "truth": (grid, np.where(varies, _over_grid(truth, value), np.nan)),
        "truth_is_closed_form": (grid, _over_grid(known.astype(float), value)),
        "z_quantile": (("level", *grid), quantiles),
    }
    return xr.Dataset(variables)


def _over_grid(values: Array, like: Array) -> Array:
    """Values (space, layer), or their mean over repeats."""
    return np.asarray(values.mean(0) if values.ndim == like.ndim else values)


def of_all_layers(found: dict[str, Estimate], truths: dict[str, Array], space: str = "weight") -> xr.Dataset:
    """Counts of estimates of all layers, (repeat,), over (quantity, space, layer)."""
    rows = []
    for quantity, estimate in found.items():
        flags = [np.broadcast_to(flag, estimate.value.shape) for flag in (estimate.wide, estimate.tail)]
        parts = (*(getattr(estimate, name) for name in ("value", "se", "low", "high")), *flags)
        one = Estimate(*(part[:, None, None] for part in parts))
        truth = np.asarray(truths[quantity], np.float64)
        exact = truth[:, None, None] if truth.ndim else truth[None, None]
        rows.append(counted([(one, np.full(one.value.shape, np.nan))], exact))
    dataset = xr.concat(rows, dim="quantity").assign_coords(quantity=list(found))
    return dataset.assign_coords({schema.SPACE: [space], schema.LAYER: [schema.ALL_LAYERS], "level": LEVELS})
