"""From raw per-guess scalars to reported quantities and their 95 % intervals: NumPy arrays only.

Raw material, per space and layer: the inner product p_i = ⟨ĝ_i, g⟩ and squared norm q_i = ‖ĝ_i‖² of every guess i, and
the Gram matrix K_ab = ⟨m_a − g, m_b − g⟩ of the means m_a of disjoint groups of guesses. The squared norm of the mean
error, ‖m̄ − g‖², exceeds the squared bias by tr Cov/n on average; the mean over pairs of *different* groups does not.

Means and smooth functions of (p, q) have influence values, one for each guess: see `fganalysis.statistics.intervals`.
Norms of means come from Gram matrices: see `fganalysis.statistics.squared_norm`. Few of these estimates have a
symmetric law, so every interval has two bounds. It is value ± 1.96 SE only in the limit of many guesses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.directional_bias import directional_bias
from fganalysis.statistics.efficiency import best_scale, efficiency
from fganalysis.statistics.guess_scalars import cosines, errors_about
from fganalysis.statistics.intervals import FEW, Array, Estimate, mean, power_of_two, proportion
from fganalysis.statistics.pareto_tail import tail_shape
from fganalysis.statistics.rounding import DOUBLE, of_root, rounding_allowed
from fganalysis.statistics.squared_norm import root, squared_norm
from fganalysis.statistics.variance import about_scaled_gradient, variance

NORMS = ("squared_bias", "bias", "relative_bias", "directional_bias")
LENGTHS, SQUARES = ("bias",), ("squared_bias", "variance", "mse")  # All other quantities have no unit.
ROOTS = ("squared_bias", "efficiency")  # Squares of numbers with a known rounding error.
SIGNED = ("shrinkage", "best_scale")  # Quantities without limits. The limits of these follow, of all others 0 and ∞:
LIMITS = {"cosine": (-1.0, 1.0)} | dict.fromkeys(("directional_bias", "efficiency", "descent_probability"), (0.0, 1.0))


def quantities(
    inner_product: Array,
    squared_length: Array,
    gram: Array,
    group_of_guess: NDArray[np.int64],
    squared_gradient: Array,
    precision: float = DOUBLE,
) -> dict[str, Estimate]:
    """Every reported quantity with its standard error and interval (docs/mathematics.md#reported-quantities).

    Everything is computed in units of the norm of the gradient (or of the guesses, if the gradient is zero), so the
    unit of the loss does not matter. Every bound is at least as far from its value as rounding may have moved it, and
    within the limits of the quantity.

    Args:
        inner_product, squared_length: p and q, (…, guess). gram: K, (…, group, group). group_of_guess: the group of
            each guess, (guess,). squared_gradient: the exact ‖g‖², (…). precision: that of the data type of the
            guesses.

    Returns:
        name → Estimate of shape (…); relative quantities are NaN where the gradient is zero.
    """
    length = _unit(squared_length, squared_gradient)
    square = length**2
    p, q, gram = inner_product / square[..., None], squared_length / square[..., None], gram / square[..., None, None]
    whole = squared_gradient / square
    g2 = np.where(whole > 0, whole, np.nan)
    sizes = np.bincount(group_of_guess, minlength=gram.shape[-1]).astype(float)
    bias_law = squared_norm(gram, sizes)
    errors = errors_about(np.ones_like(whole), p, q, whole)
    shrinkage = mean(p / g2[..., None])
    # The scale nearest to 1 in the interval of the shrinkage: see `variance`.
    scale = np.where(np.isnan(shrinkage.low), 1.0, np.clip(1.0, shrinkage.low, shrinkage.high))
    about_mean = about_scaled_gradient(scale, p, q, gram, group_of_guess, whole)
    squared_bias = replace(bias_law.estimate(), tail=tail_shape(np.sqrt(about_mean[0])))
    bias = root(squared_bias)
    estimates = {
        "squared_bias": squared_bias,
        "bias": bias,
        "relative_bias": bias.scaled(1 / np.sqrt(g2)),
        "shrinkage": shrinkage,
        "directional_bias": replace(directional_bias(gram, sizes, p, group_of_guess, g2), tail=squared_bias.tail),
        "variance": variance(errors.mean(-1) - bias_law.value, *about_mean, sizes, group_of_guess),
        "mse": mean(errors),
        "cosine": mean(cosines(p, q, g2)),
        "efficiency": efficiency(p, q, g2),
        "best_scale": best_scale(p, q),
        "descent_probability": _positive(p, precision * np.sqrt(q * whole[..., None])),
    }
    allowed = rounding_allowed(p, q, g2, whole, bias_law.value, precision)
    for name, estimate in estimates.items():
        wider = _of_few(name, estimate, p.shape[-1])
        rounded = of_root(wider, allowed[name]) if name in ROOTS else wider.of_rounding(allowed[name])
        unit = length if name in LENGTHS else square if name in SQUARES else np.ones_like(length)
        estimates[name] = _limited(name, rounded).scaled(unit)
    return estimates


def _unit(squared_length: Array, squared_gradient: Array) -> Array:
    """A power of two near the norm of the gradient, or of a guess where that is zero: dividing by it rounds nothing."""
    size = np.sqrt(np.where(squared_gradient > 0, squared_gradient, squared_length.mean(-1)))
    return power_of_two(size)


def _of_few(name: str, estimate: Estimate, n_guesses: int) -> Estimate:
    return estimate.of_few(n_guesses, FEW * (1 + (name in NORMS)))


def _limited(name: str, estimate: Estimate) -> Estimate:
    return estimate if name in SIGNED else estimate.within(*LIMITS.get(name, (0.0, np.inf)))


def _positive(p: Array, rounding: Array) -> Estimate:
    """P(p > 0), with bounds that allow for the inner products to whose sign rounding may have contributed.

    The lower bound counts the products that are positive in spite of rounding, the upper one those that may be.
    """
    n, known = p.shape[-1], np.asarray(~np.isnan(p).any(-1))
    surely, positive, possibly = (
        proportion((p > least).sum(-1).astype(float), n).where(known) for least in (rounding, 0.0, -rounding)
    )
    return replace(positive, low=surely.low, high=possibly.high)
