"""From raw per-guess scalars to reported quantities and their 95 % intervals: NumPy arrays only.

Raw material, per space and layer: the inner product p_i = ⟨ĝ_i, g⟩ and squared norm q_i = ‖ĝ_i‖² of every guess i, and
the Gram matrix K_ab = ⟨m_a − g, m_b − g⟩ of the means m_a of disjoint groups of guesses. A squared norm of a mean,
‖m̄ − g‖², overshoots the squared bias by tr Cov / n; the sum over pairs of *different* groups does not.

Means and smooth functions of (p, q) have influence values, one a guess: see `fganalysis.statistics.intervals`. Norms of
means come from Gram matrices: see `fganalysis.statistics.squared_norm`. Intervals have bounds of their own, as few of
these laws are symmetric; value ± 1.96 se is the interval in the limit of many guesses only.
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
LENGTHS, SQUARES = ("bias",), ("squared_bias", "variance", "mse")  # The others have no unit.
ROOTS = ("squared_bias", "efficiency")  # Squares whose roots are known to a rounding error.
SIGNED = ("shrinkage", "best_scale")  # Without limits. The others are at least 0 but for these:
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

    All is computed in units of the gradient's own norm (of the guesses' where it is zero), so that it does not matter
    in which units the loss is. No bound is nearer to its value than what rounding may have done to the guesses, and
    none lies where no truth can.

    Args:
        inner_product, squared_length: p and q, (…, guess). gram: (…, group, group). group_of_guess: (guess,), the group
            of each. squared_gradient: (…), exact ‖g‖². precision: the relative rounding error of the numbers that the
            guesses consist of.

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
    # Of the scales that are not ruled out, the one nearest to the gradient.
    scale = np.where(np.isnan(shrinkage.low), 1.0, np.clip(1.0, shrinkage.low, shrinkage.high))
    about_mean = about_scaled_gradient(scale, p, q, gram, group_of_guess, whole)
    squared_bias = replace(bias_law.estimate(), tail=tail_shape(np.sqrt(about_mean[0])))
    bias = root(squared_bias)
    found = {
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
    for name, estimate in found.items():
        wider = _of_few(name, estimate, p.shape[-1])
        rounded = of_root(wider, allowed[name]) if name in ROOTS else wider.of_rounding(allowed[name])
        unit = length if name in LENGTHS else square if name in SQUARES else np.ones_like(length)
        found[name] = _limited(name, rounded).scaled(unit)
    return found


def _unit(squared_length: Array, squared_gradient: Array) -> Array:
    """A power of two near the norm of the gradient, or of a guess where that is zero: dividing by it rounds nothing."""
    size = np.sqrt(np.where(squared_gradient > 0, squared_gradient, squared_length.mean(-1)))
    return power_of_two(size)


def _of_few(name: str, estimate: Estimate, n_guesses: int) -> Estimate:
    return estimate.of_few(n_guesses, FEW * (1 + (name in NORMS)))


def _limited(name: str, estimate: Estimate) -> Estimate:
    return estimate if name in SIGNED else estimate.within(*LIMITS.get(name, (0.0, np.inf)))


def _positive(p: Array, rounding: Array) -> Estimate:
    """Bounds from the guesses whose inner product is positive, or may be, whatever rounding did to it."""
    n, known = p.shape[-1], np.asarray(~np.isnan(p).any(-1))
    surely, found, possibly = (
        proportion((p > least).sum(-1).astype(float), n).where(known) for least in (rounding, 0.0, -rounding)
    )
    return replace(found, low=surely.low, high=possibly.high)
