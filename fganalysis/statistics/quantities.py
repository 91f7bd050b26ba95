"""From raw per-guess scalars to reported quantities and their 95 % intervals: NumPy arrays only.

Raw material, per space and layer: the inner product p_i = ⟨ĝ_i, g⟩ and squared norm q_i = ‖ĝ_i‖² of every guess i, and
the Gram matrix K_ab = ⟨m_a − g, m_b − g⟩ of the means m_a of disjoint groups of guesses. A squared norm of a mean,
‖m̄ − g‖², overshoots the squared bias by tr Cov / n; the sum over pairs of *different* groups does not.

Means and smooth functions of (p, q) have influence values, one a guess: see `fganalysis.statistics.intervals`. Norms of
means come from Gram matrices: see `fganalysis.squared_norm`. Intervals have bounds of their own, as few of these laws
are symmetric; value ± 1.96 se is the interval in the limit of many guesses only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.intervals import (
    FEW,
    TAIL_PROBABILITY,
    Array,
    Estimate,
    Shape,
    mean,
    power_of_two,
    proportion,
    shape,
    skewed,
)
from fganalysis.statistics.pareto_tail import tail_shape
from fganalysis.statistics.squared_norm import LEAST_GROUPS, SquaredNorm, mean_over_pairs, root, squared_norm

__all__ = [
    "Estimate",
    "cosine_quantiles",
    "cosines",
    "errors_about",
    "less_squared_bias",
    "mean",
    "quantities",
    "squared_tangent",
]

NORMS = ("squared_bias", "bias", "relative_bias", "directional_bias")
LENGTHS, SQUARES = ("bias",), ("squared_bias", "variance", "mse")  # The others have no unit.
ROOTS = ("squared_bias", "efficiency")  # Squares whose roots are known to a rounding error.
SIGNED = ("shrinkage", "best_scale")  # Without limits. The others are at least 0 but for these:
LIMITS = {"cosine": (-1.0, 1.0)} | dict.fromkeys(("directional_bias", "efficiency", "descent_probability"), (0.0, 1.0))
NEAR = 4.0  # Standard errors from zero within which a square has the law of a squared norm.
ROOM = 3.0  # Guesses like the largest met that the interval of an efficiency leaves room for.
DOUBLE = float(np.finfo(np.float64).eps)
ROUNDING = 32.0  # What rounding may add to a guess, its products and sums, in units of the data type's precision.
NOTABLE = 0.1  # Of an interval's length: by what such room must widen it to be called wide.
CLEAR = 5.0  # Standard errors that the mean guess must have along the gradient before it has a direction.
NEARLY_ALL = 0.9  # Of the range from 0 to 1: an interval that leaves out no more says next to nothing.
NOT_KNOWN = 0.1  # Of a variance: the share known to its expectation alone from which on intervals cover too much.


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
    about_mean = _about(scale, p, q, gram, group_of_guess, whole)
    squared_bias = replace(bias_law.estimate(), tail=tail_shape(np.sqrt(about_mean[0])))
    bias = root(squared_bias)
    found = {
        "squared_bias": squared_bias,
        "bias": bias,
        "relative_bias": bias.scaled(1 / np.sqrt(g2)),
        "shrinkage": shrinkage,
        "directional_bias": replace(_directional_bias(gram, sizes, p, group_of_guess, g2), tail=squared_bias.tail),
        "variance": _variance(errors.mean(-1) - bias_law.value, *about_mean, sizes, group_of_guess),
        "mse": mean(errors),
        "cosine": mean(cosines(p, q, g2)),
        "efficiency": _efficiency(p, q, g2),
        "best_scale": _best_scale(p, q),
        "descent_probability": _positive(p, precision * np.sqrt(q * whole[..., None])),
    }
    allowed = _rounding_allowed(p, q, g2, whole, bias_law.value, precision)
    for name, estimate in found.items():
        wider = _of_few(name, estimate, p.shape[-1])
        rounded = _of_root(wider, allowed[name]) if name in ROOTS else wider.of_rounding(allowed[name])
        unit = length if name in LENGTHS else square if name in SQUARES else np.ones_like(length)
        found[name] = _limited(name, rounded).scaled(unit)
    return found


def _unit(squared_length: Array, squared_gradient: Array) -> Array:
    """A power of two near the norm of the gradient, or of a guess where that is zero: dividing by it rounds nothing."""
    size = np.sqrt(np.where(squared_gradient > 0, squared_gradient, squared_length.mean(-1)))
    return power_of_two(size)


def _rounding_allowed(
    p: Array, q: Array, g2: Array, squared_gradient: Array, squared_bias: Array, precision: float
) -> dict[str, Array]:
    """What rounding may have done to every quantity, to the root of those of `ROOTS`.

    The rounding of a guess is relative to the guess. What of it differs from guess to guess is part of the noise; so it
    is the length of the mean guess that counts. Gram matrices and differences from the gradient have double precision.
    """
    gradient, one = np.sqrt(squared_gradient), np.ones_like(squared_gradient)
    along = np.abs(p.mean(-1)) / np.sqrt(g2)
    single, double = ROUNDING * precision, ROUNDING * DOUBLE
    # ‖ḡ‖² = ‖ḡ − g‖² + 2⟨ḡ, g⟩ − ‖g‖², known to double precision of ‖g‖², at most E‖ĝ‖² and at least ⟨ḡ, g⟩²/‖g‖².
    second = q.mean(-1)
    mean_square = squared_bias + 2 * p.mean(-1) - (1 - double) * squared_gradient
    guess = np.sqrt(np.fmin(np.fmax(mean_square, np.nan_to_num(along) ** 2), second))
    of_error = single * guess + double * gradient
    of_square = 2 * of_error * (guess + gradient)
    return {
        "squared_bias": of_error,
        "bias": of_error,
        "relative_bias": of_error / np.sqrt(g2),
        "shrinkage": single * guess / np.sqrt(g2),
        "directional_bias": _over(single * guess * (guess + gradient) + double * (guess + gradient) ** 2, along**2),
        "variance": of_square,
        "mse": of_square,
        "cosine": single * one,
        "efficiency": single * one,
        "best_scale": 2 * single * _over(gradient, np.sqrt(second)),
        "descent_probability": 0.0 * one,
    }


def _over(numerator: Array, denominator: Array) -> Array:
    """0 where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=~(denominator <= 0))


def _of_few(name: str, estimate: Estimate, n_guesses: int) -> Estimate:
    return estimate.of_few(n_guesses, FEW * (1 + (name in NORMS)))


def _limited(name: str, estimate: Estimate) -> Estimate:
    return estimate if name in SIGNED else estimate.within(*LIMITS.get(name, (0.0, np.inf)))


def _of_root(estimate: Estimate, rounding: Array) -> Estimate:
    """`Estimate.of_rounding` for a square whose root is known to ``rounding``."""
    middle = np.sqrt(np.maximum(estimate.value, 0.0))
    low, high = np.maximum(middle - rounding, 0.0) ** 2, (middle + rounding) ** 2
    wide = np.asarray(estimate.wide & (estimate.high - estimate.low > high - low))
    return replace(estimate, low=np.minimum(estimate.low, low), high=np.maximum(estimate.high, high), wide=wide)


def errors_about(scale: Array, p: Array, q: Array, squared_gradient: Array) -> Array:
    """‖ĝ − s g‖² of every guess, (…, guess), for a number s: a square, which rounding alone makes negative."""
    errors: Array = np.maximum(q - 2 * scale[..., None] * p + (scale**2 * squared_gradient)[..., None], 0.0)
    return errors


def _about(
    scale: Array, p: Array, q: Array, gram: Array, group_of_guess: NDArray[np.int64], squared_gradient: Array
) -> tuple[Array, Array]:
    """‖ĝ − s g‖² of every guess and ⟨m_a − s g, m_b − s g⟩, for a number s: see `_variance`."""
    g2 = squared_gradient[..., None]
    along = _group_means(p, group_of_guess, gram.shape[-1]) - g2  # ⟨m_a − g, g⟩
    less = 1 - scale[..., None]
    moved = less * along
    return errors_about(scale, p, q, squared_gradient), gram + moved[..., :, None] + moved[..., None, :] + (
        less**2 * g2
    )[..., None]


def cosine_quantiles(
    inner_product: Array, squared_length: Array, squared_gradient: Array, levels: list[float]
) -> Array:
    """Quantiles over guesses of the cosine with the gradient, (level, …)."""
    g2 = np.where(squared_gradient > 0, squared_gradient, np.nan)
    return np.quantile(cosines(inner_product, squared_length, g2), levels, axis=-1)


def cosines(p: Array, q: Array, g2: Array) -> Array:
    """Of every guess with the gradient, (…, guess); 0 where the guess is zero, NaN where ``g2`` is."""
    lengths = np.sqrt(q) * np.sqrt(g2[..., None])
    unknown = np.where(np.isnan(lengths), np.nan, np.zeros_like(p))
    return np.clip(np.divide(p, lengths, out=unknown, where=lengths > 0), -1.0, 1.0)


def _positive(p: Array, rounding: Array) -> Estimate:
    """Bounds from the guesses whose inner product is positive, or may be, whatever rounding did to it."""
    n, known = p.shape[-1], np.asarray(~np.isnan(p).any(-1))
    surely, found, possibly = (
        proportion((p > least).sum(-1).astype(float), n).where(known) for least in (rounding, 0.0, -rounding)
    )
    return replace(found, low=surely.low, high=possibly.high)


def _best_scale(p: Array, q: Array) -> Estimate:
    """E p / E q with its influence values (p − c q)/E q."""
    second = q.mean(-1, keepdims=True)
    scale = np.divide(p.mean(-1, keepdims=True), second, out=np.full_like(second, np.nan), where=second > 0)
    influence = np.divide(p - scale * q, second, out=np.full_like(p, np.nan), where=second > 0)
    return replace(skewed(scale[..., 0], shape(influence)), tail=tail_shape(influence))


def _efficiency(p: Array, q: Array, g2: Array) -> Estimate:
    """ρ² = (E p)²/(‖g‖² E q), the square of the mean corrected by its variance; its interval is that of ρ, squared.

    With p = p̄ + ‖g‖√q̄ u and q = q̄(1 + v), ρ has the influence values u − ρv/2, and the second derivatives −½ by (u,
    v) and ¾ρ by (v, v). Near zero, ρ² is a squared norm in one dimension and has that interval. The tail of q is what
    few guesses have not met, and the noise of p hides it: the lower bound is at most what three more guesses as long as
    the longest would leave.
    """
    n = p.shape[-1]
    first, second = p.mean(-1, keepdims=True), q.mean(-1, keepdims=True)
    length = np.sqrt(g2[..., None] * np.where(second > 0, second, np.nan))
    u, v, rho = (p - first) / length, q * g2[..., None] / length**2 - 1, (first / length)[..., 0]
    influence = u - rho[..., None] * v / 2
    along_u, along_v = (influence * u).mean(-1), (influence * v).mean(-1)
    cubed = influence.std(-1) ** 3
    bend = np.divide(0.75 * rho * along_v**2 - along_u * along_v, cubed, out=np.zeros_like(rho), where=cubed > 0)
    found = skewed(rho, shape(influence), (0.375 * rho * (v**2).mean(-1) - 0.5 * (u * v).mean(-1)) / n, bend)
    squared_error = found.se**2
    near = SquaredNorm.of_a_square(rho**2 - squared_error, squared_error, n - 1)
    low, high = near.interval()
    squares = np.sort(np.stack([found.low**2, found.high**2]), axis=0)
    apart = np.abs(rho) > NEAR * found.se
    value = rho**2 - (u**2).mean(-1) / max(n - 1, 1)
    lower = np.minimum(squares[0], value / (1 + ROOM * v.max(-1) / n))
    wide = ~apart | (lower < squares[0] - NOTABLE * (squares[1] - squares[0]))
    low, high = np.where(apart, lower, low), np.where(apart, squares[1], high)
    # 2ρ se is zero where ρ happens to be, and the square of what is not known to be zero is not known to be.
    se = np.where(apart, 2 * np.abs(rho) * found.se, near.spread(near.value))
    return Estimate(value, se, low, high, wide, tail_shape(influence))


def _group_means(values: Array, group_of_guess: NDArray[np.int64], groups: int) -> Array:
    """Means over the guesses of each group, (…, group)."""
    member = (group_of_guess[:, None] == np.arange(groups)).astype(np.float64)
    means: Array = values @ (member / member.sum(0))
    return means


def _variance(value: Array, errors: Array, gram: Array, sizes: Array, group_of_guess: NDArray[np.int64]) -> Estimate:
    """tr Cov ĝ = E‖ĝ − c‖² − ‖ḡ − c‖², its interval from errors and Gram matrix about c = s g, s the shrinkage.

    The value does not depend on c, but the errors do: with ĝ = ḡ + ξ, those of a guess are

        ‖ĝ − c‖² = ‖ξ‖² + 2⟨ξ, ḡ − c⟩ + ‖ḡ − c‖²

    and the second term, which the squared bias takes off again, is nearly all where a guess is short against the
    gradient and c is the gradient: it is then longer than ‖ξ‖² by ‖g‖/‖ξ‖, and what the groups say of it cannot take it
    off to that precision. About s g, what is left of ḡ − c is across the gradient, or no longer than s is uncertain: s
    is 1 where the shrinkage may be 1, else its nearer bound. What a difference of two standard errors of ⟨ξ̄, g⟩ leaves
    of the second term has a variance of 16 Var⟨ξ, g⟩²/(n‖g‖⁴), 1/n of that of ‖ξ‖² where noise is normal.
    """
    found = less_squared_bias(errors, squared_norm(gram, sizes), gram, group_of_guess)
    return replace(found, value=value, low=found.low + (value - found.value), high=found.high + (value - found.value))


def less_squared_bias(
    errors: Array, squared_bias: SquaredNorm, gram: Array, group_of_guess: NDArray[np.int64]
) -> Estimate:
    """Mean of ``errors`` − squared bias: with e = ‖ĝ − g‖² the variance, with e = ⟨ĝ − g, ĝ' − g⟩ of two guesses on the
    same rows that between rows. Bias and errors may be about any point in the place of g.

    With ĝ = g + δ + ξ and U the mean of ⟨m_a − g, m_b − g⟩ over a ≠ b, the estimate is off by

        mean of ‖ξ‖² − its expectation  −  mean of ⟨ξ_a, ξ_b⟩ over a ≠ b

    two parts without correlation. The first is a mean over guesses of e − 2⟨ξ, δ⟩, the second known by group alone: so
    its variance is that of the mean of e, in which every guess counts, times the regression of the influence on e over
    the groups, and that of what is left of it, with the groups' degrees of freedom. Skewness is that of e. Of δ too the
    groups know no more than δ + ξ̄, which adds 4 ξ̄ᵀ Cov(ξ) ξ̄/n, 2v₀ in expectation, and that is taken off, if the
    second term varies as much.

    The second part is U's own noise, v₀ (`fganalysis.statistics.squared_norm`), all there is where ‖ξ‖² does not vary:
    two rows of which a guess takes one, signs. It is no normal number but, in one dimension of noise, minus a square
    less its mean. The bounds of both parts are put together as roots of sums of squares, side by side (Zou and Donner
    2008).

    Wide where much of the first part may be ξ̄'s and not be known from its expectation: in few dimensions.
    """
    groups = gram.shape[-1]
    value = errors.mean(-1) - squared_bias.value
    if groups < LEAST_GROUPS:
        return Estimate.missing(value.shape)
    own = shape(errors)
    by_group = _group_means(errors, group_of_guess, groups)
    by_bias = (gram * (1 - np.eye(groups))).sum(-1) * 2 / (groups - 1)
    by_group, by_bias = (part - part.mean(-1, keepdims=True) for part in (by_group, by_bias))
    influence = by_group - by_bias
    squares = (by_group**2).sum(-1)
    slope = np.divide((influence * by_group).sum(-1), squares, out=np.ones_like(squares), where=squares > 0)
    rest = ((influence - slope[..., None] * by_group) ** 2).sum(-1) / (groups * (groups - 2))
    first = (slope * own.se) ** 2
    found = first + rest
    noise, of_bias = squared_bias.variance_without_bias, (by_bias**2).sum(-1) / (groups * (groups - 1))
    linear = np.maximum(found - np.minimum(2 * noise, of_bias), 0.0)
    share = np.divide(first, found, out=np.ones_like(found), where=found > 0)
    # What `skewed` makes degrees of freedom of: those of both parts, after Satterthwaite.
    inverse = share**2 * (own.kurtosis - 1) / (2 * own.n) + (1 - share) ** 2 / (groups - 2)
    skewness = np.copysign(share**1.5, slope) * own.skewness
    of_mean = skewed(value, Shape(own.n, np.sqrt(linear), skewness, 1 + 2 * own.n * inverse))
    below, above = squared_bias.reach(np.zeros_like(value), TAIL_PROBABILITY)
    low = value - np.hypot(np.maximum(value - of_mean.low, 0.0), below)
    high = value + np.hypot(np.maximum(of_mean.high - value, 0.0), above)
    in_one_dimension = squared_bias.skewness**2 / 8
    wide = np.asarray(2 * noise * in_one_dimension > NOT_KNOWN * (linear + noise))
    return Estimate(value, np.sqrt(linear + noise), low, high, wide, tail_shape(errors))


def _directional_bias(gram: Array, sizes: Array, p: Array, group_of_guess: NDArray[np.int64], g2: Array) -> Estimate:
    """sin² = 1 − ⟨ḡ, g⟩²/(‖ḡ‖²‖g‖²) = tan²/(1 + tan²), the squared tangent being the squared norm of the mean guess
    across the gradient, over its component along it, c: influence vectors (m_a⊥ − (m̄⊥/c)(c_a − c))/c.

    NaN where c is less than 5 of its standard errors. Where noise makes the estimate of tan² negative, sin² is 0, as a
    bias is: x/(1 + x) has a pole at −1, which many dimensions and few guesses come near. Wide where hardly a value
    between 0 and 1 is left out.
    """
    if gram.shape[-1] < LEAST_GROUPS:
        return Estimate.missing(p.shape[:-1])
    estimate = squared_tangent(gram, sizes, p, group_of_guess, g2).estimate()
    squared = np.maximum(estimate.value, 0.0)
    value, low, high = (bound / (1 + bound) for bound in (squared, estimate.low, estimate.high))
    return Estimate(
        value, estimate.se / (1 + squared) ** 2, low, high, np.asarray(estimate.wide | (high - low > NEARLY_ALL))
    )


def squared_tangent(gram: Array, sizes: Array, p: Array, group_of_guess: NDArray[np.int64], g2: Array) -> SquaredNorm:
    """tan² of the mean guess to the gradient, and its law: see `_directional_bias`."""
    groups = gram.shape[-1]
    length = np.sqrt(g2)[..., None]
    weights = sizes / sizes.sum()
    component = _group_means(p, group_of_guess, groups) / length
    whole = gram + length[..., None] * (component[..., :, None] + component[..., None, :]) - length[..., None] ** 2
    across = whole - component[..., :, None] * component[..., None, :]
    along = mean(p / length)
    clear = np.abs(along.value) > CLEAR * along.se
    centre = np.where(clear, along.value, np.nan)[..., None]
    deviation = component - centre
    overlap = (across @ weights) / centre
    tangent = (overlap @ weights)[..., None, None] / centre[..., None]
    influence = (
        across
        - deviation[..., :, None] * overlap[..., None, :]
        - deviation[..., None, :] * overlap[..., :, None]
        + deviation[..., :, None] * deviation[..., None, :] * tangent
    ) / centre[..., None] ** 2
    unbiased = mean_over_pairs(across, sizes) / (centre[..., 0] ** 2 - along.se**2)
    return squared_norm(influence, sizes).moved(unbiased)
