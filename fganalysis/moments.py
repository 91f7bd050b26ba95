"""From raw per-guess scalars to reported quantities and their 95 % intervals: NumPy arrays only.

Raw material, per space and layer: the inner product p_i = ⟨ĝ_i, g⟩ and squared norm q_i = ‖ĝ_i‖² of every guess i, and
the Gram matrix K_ab = ⟨m_a − g, m_b − g⟩ of the means m_a of disjoint groups of guesses. A squared norm of a mean,
‖m̄ − g‖², overshoots the squared bias by tr Cov / n; the sum over pairs of *different* groups does not.

Means and smooth functions of (p, q) have influence values, one a guess: see `fganalysis.intervals`. Norms of means come
from Gram matrices: see `fganalysis.squared_norm`. Intervals have bounds of their own, as few of these laws are
symmetric; value ± 1.96 se is the interval in the limit of many guesses only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.intervals import FEW, Array, Estimate, Shape, mean, proportion, shape, skewed
from fganalysis.squared_norm import LEAST_GROUPS, SquaredNorm, root, squared_norm

__all__ = [
    "Estimate",
    "cosine_quantiles",
    "cosines",
    "less_squared_bias",
    "mean",
    "quantities",
    "squared_tangent",
    "wang2025",
]

SIGNED = ("shrinkage", "cosine", "best_scale", "variance")  # An estimate of a variance may be negative.
NORMS = ("squared_bias", "bias", "relative_bias", "directional_bias", "wang2025_bias", "wang2025_variance")
NEAR = 4.0  # Standard errors from zero within which a square has the law of a squared norm.
ROOM = 3.0  # Guesses like the largest met that the interval of an efficiency leaves room for,
ROOM_IN_GROUPS = 6.0  # and groups like the largest that of the seed paper's variance does.
ROUNDING = 1e-5  # Relative to the gradient: an interval this short is of single precision's rounding.
NOTABLE = 0.1  # Of an interval's length: by what such room must widen it to be called wide.
CLEAR = 5.0  # Standard errors that the mean guess must have along the gradient before it has a direction.


def quantities(
    inner_product: Array, squared_length: Array, gram: Array, group_of_guess: NDArray[np.int64], squared_gradient: Array
) -> dict[str, Estimate]:
    """Every quantity of MATH.md §4 with its standard error and interval.

    Args:
        inner_product, squared_length: p and q, (…, guess). gram: (…, group, group). group_of_guess: (guess,), the group
            of each. squared_gradient: (…), exact ‖g‖².

    Returns:
        name → Estimate of shape (…); relative quantities are NaN where the gradient is zero.
    """
    g2 = np.where(squared_gradient > 0, squared_gradient, np.nan)
    p, q = inner_product, squared_length
    sizes = np.bincount(group_of_guess, minlength=gram.shape[-1]).astype(float)
    bias_law = squared_norm(gram, sizes)
    squared_bias = bias_law.estimate()
    bias = root(squared_bias)
    errors = q - 2 * p + squared_gradient[..., None]
    found = {
        "squared_bias": squared_bias,
        "bias": bias,
        "relative_bias": bias.scaled(1 / np.sqrt(g2)),
        "shrinkage": mean(p / g2[..., None]),
        "directional_bias": _directional_bias(gram, sizes, p, group_of_guess, g2),
        "variance": less_squared_bias(errors, bias_law, gram, group_of_guess),
        "mse": mean(errors),
        "cosine": mean(cosines(p, q, g2)),
        "efficiency": _efficiency(p, q, g2),
        "best_scale": _best_scale(p, q),
        "descent_probability": _positive(p),
    }
    # Of guesses that are all alike only the rounding varies, and nothing is wide.
    scales: dict[str, Array | float] = {
        "squared_bias": g2,
        "bias": np.sqrt(g2),
        "relative_bias": 1.0,
        "directional_bias": 1.0,
    }
    for name, scale in scales.items():
        own = found[name]
        found[name] = replace(own, wide=own.wide & (own.high - own.low > ROUNDING * scale))
    for name, estimate in found.items():
        found[name] = estimate.of_few(p.shape[-1], -np.inf if name in SIGNED else 0.0, FEW * (1 + (name in NORMS)))
    return found


def cosine_quantiles(
    inner_product: Array, squared_length: Array, squared_gradient: Array, levels: list[float]
) -> Array:
    """Quantiles over guesses of the cosine with the gradient, (level, …)."""
    g2 = np.where(squared_gradient > 0, squared_gradient, np.nan)
    return np.quantile(cosines(inner_product, squared_length, g2), levels, axis=-1)


def wang2025(second_moment: Array, error: Array, sizes: Array) -> dict[str, Estimate]:
    """The seed paper's two of one layer (MATH.md §4): ‖E e‖, and ‖E s − (E e)²‖, squares and difference by unit.

    Args:
        second_moment, error: means over the guesses of a group, and over examples, of s = (ĝ_b − g_b)² and
            e = ĝ_b − g_b, (…, group, unit). sizes: (group,), guesses in each.
    """
    bias = root(squared_norm(error @ error.swapaxes(-1, -2), sizes).estimate())
    found = {"wang2025_bias": bias, "wang2025_variance": _norm_of_variance(second_moment, error, sizes)}
    return {name: part.of_few(int(sizes.sum()), 0.0, FEW * (1 + (name in NORMS))) for name, part in found.items()}


def _norm_of_variance(second_moment: Array, error: Array, sizes: Array) -> Estimate:
    groups = len(sizes)
    if groups < LEAST_GROUPS:
        return Estimate.missing(second_moment.shape[:-2])
    weights = (sizes / sizes.sum())[:, None]
    mean_error = (weights * error).sum(-2, keepdims=True)
    vector = (weights * second_moment).sum(-2) - mean_error[..., 0, :] ** 2
    value = np.linalg.norm(vector, axis=-1)
    length = np.where(value > 0, value, 1.0)
    # The derivative of E s − (E e)², unit by unit, and its part along the vector.
    parts = second_moment - 2 * mean_error * error
    parts = parts - parts.mean(-2, keepdims=True)
    influence = (parts * (vector / length[..., None])[..., None, :]).sum(-1)
    # What is across the vector makes it longer: ‖v + ξ‖ ≈ ‖v‖ + ξ∥ + ‖ξ⊥‖²/2‖v‖.
    across = (parts**2).sum((-2, -1)) - (influence**2).sum(-1)
    found = skewed(value, shape(influence), bias=across / (groups * (groups - 1)) / (2 * length))
    higher = value + ROOM_IN_GROUPS * influence.max(-1) / groups
    wide = higher > found.high + NOTABLE * (found.high - found.low)
    return replace(found, high=np.maximum(found.high, higher), wide=wide)


def cosines(p: Array, q: Array, g2: Array) -> Array:
    """Of every guess with the gradient, (…, guess); 0 where the guess is zero, NaN where ``g2`` is."""
    lengths = np.sqrt(q * g2[..., None])
    return np.divide(p, lengths, out=np.where(np.isnan(lengths), np.nan, np.zeros_like(p)), where=lengths > 0)


def _positive(p: Array) -> Estimate:
    known = np.asarray(~np.isnan(p).any(-1))
    return proportion((p > 0).sum(-1).astype(float), p.shape[-1]).where(known)


def _best_scale(p: Array, q: Array) -> Estimate:
    """E p / E q with its influence values (p − c q)/E q."""
    second = q.mean(-1, keepdims=True)
    scale = np.divide(p.mean(-1, keepdims=True), second, out=np.full_like(second, np.nan), where=second > 0)
    influence = np.divide(p - scale * q, second, out=np.full_like(p, np.nan), where=second > 0)
    return skewed(scale[..., 0], shape(influence))


def _efficiency(p: Array, q: Array, g2: Array) -> Estimate:
    """ρ² = (E p)²/(‖g‖² E q), the square of the mean corrected by its variance; its interval is that of ρ, squared.

    With p = p̄ + ‖g‖√q̄ u and q = q̄(1 + v), ρ has the influence values u − ρv/2, and the second derivatives −½ by (u, v)
    and ¾ρ by (v, v). Near zero, ρ² is a squared norm in one dimension and has that interval. The tail of q is what few
    guesses have not met, and the noise of p hides it: the lower bound is at most what three more guesses as long as the
    longest would leave.
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
    return Estimate(value, se, low, high, wide)


def _group_means(values: Array, group_of_guess: NDArray[np.int64], groups: int) -> Array:
    """Means over the guesses of each group, (…, group)."""
    member = (group_of_guess[:, None] == np.arange(groups)).astype(np.float64)
    means: Array = values @ (member / member.sum(0))
    return means


def less_squared_bias(
    errors: Array, squared_bias: SquaredNorm, gram: Array, group_of_guess: NDArray[np.int64]
) -> Estimate:
    """Mean of ``errors`` − squared bias: with e = ‖ĝ − g‖² the variance, with e = ⟨ĝ − g, ĝ' − g⟩ of two guesses on the
    same rows that between rows. The influence values are e − 2⟨ĝ − g, bias⟩, the second known by group alone.

    So the error is that of the mean of e, in which every guess counts, times the regression of the influence on e over
    the groups, and that of what is left of it, with the groups' degrees of freedom. Skewness is that of the first part.
    """
    groups = gram.shape[-1]
    value = errors.mean(-1) - squared_bias.value
    if groups < LEAST_GROUPS:
        return Estimate.missing(value.shape)
    own = shape(errors)
    by_group = _group_means(errors, group_of_guess, groups)
    influence = by_group - (gram * (1 - np.eye(groups))).sum(-1) * 2 / (groups - 1)
    by_group, influence = (part - part.mean(-1, keepdims=True) for part in (by_group, influence))
    squares = (by_group**2).sum(-1)
    slope = np.divide((influence * by_group).sum(-1), squares, out=np.ones_like(squares), where=squares > 0)
    rest = ((influence - slope[..., None] * by_group) ** 2).sum(-1) / (groups * (groups - 2))
    first = (slope * own.se) ** 2
    total = first + rest
    share = np.divide(first, total, out=np.ones_like(total), where=total > 0)
    # What `skewed` makes degrees of freedom of: those of both parts, after Satterthwaite.
    inverse = share**2 * (own.kurtosis - 1) / (2 * own.n) + (1 - share) ** 2 / (groups - 2)
    skewness = np.copysign(share**1.5, slope) * own.skewness
    return skewed(value, Shape(own.n, np.sqrt(total), skewness, 1 + 2 * own.n * inverse))


def _directional_bias(gram: Array, sizes: Array, p: Array, group_of_guess: NDArray[np.int64], g2: Array) -> Estimate:
    """sin² = 1 − ⟨ḡ, g⟩²/(‖ḡ‖²‖g‖²) = tan²/(1 + tan²), the squared tangent being the squared norm of the mean guess
    across the gradient, over its component along it, c: influence vectors (m_a⊥ − (m̄⊥/c)(c_a − c))/c.

    NaN where c is less than 5 of its standard errors.
    """
    if gram.shape[-1] < LEAST_GROUPS:
        return Estimate.missing(p.shape[:-1])
    found = squared_tangent(gram, sizes, p, group_of_guess, g2)
    squared, estimate = found.value, found.estimate()
    low, high = (bound / (1 + bound) for bound in (estimate.low, estimate.high))
    return Estimate(squared / (1 + squared), estimate.se / (1 + squared) ** 2, low, high, estimate.wide)


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
    unbiased = squared_norm(across, sizes).value / (centre[..., 0] ** 2 - along.se**2)
    return squared_norm(influence, sizes).moved(unbiased)
