"""Errors and cosines of guesses from their inner products and squared norms, and means over groups of guesses.

p and q are (…, guess), as in `fganalysis.statistics.quantities`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.intervals import Array


def errors_about(scale: Array, p: Array, q: Array, squared_gradient: Array) -> Array:
    """‖ĝ − s g‖² of every guess, (…, guess). scale: s (…). Values that rounding makes negative are set to 0."""
    errors: Array = np.maximum(q - 2 * scale[..., None] * p + (scale**2 * squared_gradient)[..., None], 0.0)
    return errors


def cosines(p: Array, q: Array, g2: Array) -> Array:
    """The cosine of every guess with the gradient, (…, guess). 0 for a guess of zero, NaN where ``g2`` is NaN."""
    lengths = np.sqrt(q) * np.sqrt(g2[..., None])
    unknown = np.where(np.isnan(lengths), np.nan, np.zeros_like(p))
    return np.clip(np.divide(p, lengths, out=unknown, where=lengths > 0), -1.0, 1.0)


def cosine_quantiles(
    inner_product: Array, squared_length: Array, squared_gradient: Array, levels: list[float]
) -> Array:
    """Quantiles over guesses of the cosine with the gradient, (level, …)."""
    g2 = np.where(squared_gradient > 0, squared_gradient, np.nan)
    return np.quantile(cosines(inner_product, squared_length, g2), levels, axis=-1)


def group_means(values: Array, group_of_guess: NDArray[np.int64], groups: int) -> Array:
    """Means over the guesses of each group, (…, group)."""
    rows = values.reshape(-1, values.shape[-1])
    sums = np.stack([np.bincount(group_of_guess, weights=row, minlength=groups) for row in rows])
    means: Array = (sums / np.bincount(group_of_guess, minlength=groups)).reshape(*values.shape[:-1], groups)
    return means
