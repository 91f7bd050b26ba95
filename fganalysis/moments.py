"""From raw per-guess scalars to reported quantities and their standard errors: NumPy arrays only.

Raw material, per space and layer: the inner product p_i = ⟨ĝ_i, g⟩ and squared norm q_i = ‖ĝ_i‖² of every guess i, and
the Gram matrix K_ab = ⟨m_a − g, m_b − g⟩ of the means m_a of disjoint groups of guesses. A squared norm of a mean,
‖m̄ − g‖², overshoots the squared bias by tr Cov / n; the sum over pairs of *different* groups does not.

Errors of smooth functions of (p, q) come from their influence values, one a guess; those of functions of the Gram
matrix from the exact variance of a U-statistic or a jackknife over groups, widened by Student's t for the number of
groups so that ± 1.96 standard errors covers 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
Z95 = 1.959963984540054
LEAST_GROUPS = 4


@dataclass(frozen=True)
class Estimate:
    """Values and standard errors, of the same shape."""

    value: Array
    se: Array


def mean(values: Array) -> Estimate:
    """The mean over the last axis and its standard error; NaN error for fewer than two values."""
    n = values.shape[-1]
    centre = values.mean(-1)
    if n < 2:
        return Estimate(centre, np.full_like(centre, np.nan))
    return Estimate(centre, values.std(-1, ddof=1) / np.sqrt(n))


def pair_mean(gram: Array, weights: Array) -> Estimate:
    """The mean of K_ab over a ≠ b with weights w_a w_b, an unbiased estimate θ of ‖E m − g‖², and its standard error.

    The variance is E U² − θ²; θ² is estimated without bias by the mean of K_ab K_cd over four different groups, so the
    variance estimate U² − mean(K_ab K_cd) is itself unbiased. Where noise makes it fall below the part that is there
    without any bias, 2 tr C² / (A(A−1)), that part is taken. Source: Hoeffding 1948.

    Args:
        gram: (…, group, group). weights: (group,), guesses per group.
    """
    groups = gram.shape[-1]
    missing = np.full(gram.shape[:-2], np.nan)
    if groups < LEAST_GROUPS:
        return Estimate(missing, missing)
    outer = np.outer(weights, weights)
    ones = _pair_sums(outer)
    sums = _pair_sums(gram * outer)
    value = sums.pairs / ones.pairs
    four = (sums.pairs**2 - 4 * (sums.chains - sums.squares) - 2 * sums.squares) / (
        ones.pairs**2 - 4 * (ones.chains - ones.squares) - 2 * ones.squares
    )
    unbiased = value**2 - four
    variance = np.maximum(unbiased, _variance_without_bias(gram))
    return Estimate(value, np.sqrt(variance) * student_widening(groups - 1))


@dataclass(frozen=True)
class _PairSums:
    pairs: Array
    squares: Array
    chains: Array


def _pair_sums(matrix: Array) -> _PairSums:
    off = matrix - _diagonal(matrix)
    rows = off.sum(-1)
    return _PairSums(rows.sum(-1), (off**2).sum((-2, -1)), (rows**2).sum(-1))


def _diagonal(matrix: Array) -> Array:
    return np.multiply(matrix, np.eye(matrix.shape[-1]), dtype=np.float64)


def _variance_without_bias(gram: Array) -> Array:
    """2 tr C²/(A(A−1)): the variance of the mean over pairs where there is no bias, C the covariance of a group mean.

    tr C² is Σ K_ab²/(A(A−3)) over a ≠ b with K centred without its diagonal (Székely and Rizzo 2014, U-centring), which
    makes it unbiased. Centring with the diagonal adds (tr C/A)²: in many dimensions that is all there is.
    """
    groups = gram.shape[-1]
    off = gram - _diagonal(gram)
    rows, columns = (off.sum(axis, keepdims=True) / (groups - 2) for axis in (-1, -2))
    whole = off.sum((-2, -1), keepdims=True) / ((groups - 1) * (groups - 2))
    centred = off - rows - columns + whole
    squares = ((centred - _diagonal(centred)) ** 2).sum((-2, -1)) / (groups * (groups - 3))
    return 2 * squares / (groups * (groups - 1))


def student_widening(degrees: int) -> float:
    """Student's 97.5 % quantile over the normal one: what makes ± 1.96 standard errors cover 95 %."""
    return float(special.stdtrit(degrees, 0.975)) / Z95


def jackknife(value: Array, without: Array) -> Estimate:
    """A value with its delete-one-group jackknife error; ``without`` holds the values without each group, last axis."""
    groups = without.shape[-1]
    if groups < LEAST_GROUPS:
        return Estimate(value, np.full_like(value, np.nan))
    spread = ((without - without.mean(-1, keepdims=True)) ** 2).sum(-1)
    return Estimate(value, np.sqrt((groups - 1) / groups * spread) * student_widening(groups - 1))


def root(squared: Estimate) -> Estimate:
    """The square root of an estimate of a non-negative quantity, for example bias from squared bias.

    At zero the delta method fails. The error is the larger half of the 95 % interval [√(s − 1.96 se), √(s + 1.96 se)]
    over 1.96: wide where the squared quantity is not clearly positive, the delta method's se/(2√s) where it is.
    """
    positive = np.maximum(squared.value, 0.0)
    value = np.sqrt(positive)
    upper = np.sqrt(positive + Z95 * squared.se)
    lower = np.sqrt(np.maximum(squared.value - Z95 * squared.se, 0.0))
    return Estimate(value, np.maximum(upper - value, value - lower) / Z95)


def proportion(hits: Array, n: int) -> Estimate:
    """A proportion with Agresti and Coull's standard error, which is not zero at 0 or 1."""
    shrunk = (hits + 2.0) / (n + 4.0)
    return Estimate(hits / n, np.sqrt(shrunk * (1.0 - shrunk) / (n + 4.0)))


def quantities(
    inner_product: Array, squared_norm: Array, gram: Array, group_of_guess: NDArray[np.int64], squared_gradient: Array
) -> dict[str, Estimate]:
    """Every quantity of MATH.md §4 with its standard error.

    Args:
        inner_product, squared_norm: (…, guess). gram: (…, group, group). group_of_guess: (guess,), the group of each.
        squared_gradient: (…), exact ‖g‖².

    Returns:
        name → Estimate of shape (…); relative quantities are NaN where the gradient is zero.
    """
    g2 = np.where(squared_gradient > 0, squared_gradient, np.nan)
    p, q = inner_product, squared_norm
    n = p.shape[-1]
    sizes = np.bincount(group_of_guess, minlength=gram.shape[-1]).astype(float)
    squared_bias = pair_mean(gram, sizes)
    bias = root(squared_bias)
    shrinkage = mean(p / g2[..., None])
    errors = q - 2 * p + squared_gradient[..., None]
    cosines = _cosines(p, q, g2)
    return {
        "squared_bias": squared_bias,
        "bias": bias,
        "relative_bias": Estimate(bias.value / np.sqrt(g2), bias.se / np.sqrt(g2)),
        "shrinkage": shrinkage,
        "directional_bias": _directional_bias(gram, sizes, p, group_of_guess, g2),
        "variance": _variance(gram, sizes, errors, group_of_guess),
        "mse": mean(errors),
        "cosine": mean(cosines),
        "efficiency": _efficiency(p, q, g2),
        "best_scale": _best_scale(p, q),
        "descent_probability": _positive(p, n),
    }


def cosine_quantiles(inner_product: Array, squared_norm: Array, squared_gradient: Array, levels: list[float]) -> Array:
    """Quantiles over guesses of the cosine with the gradient, (level, …)."""
    g2 = np.where(squared_gradient > 0, squared_gradient, np.nan)
    return np.quantile(_cosines(inner_product, squared_norm, g2), levels, axis=-1)


def _cosines(p: Array, q: Array, g2: Array) -> Array:
    lengths = np.sqrt(q * g2[..., None])
    return np.divide(p, lengths, out=np.where(np.isnan(lengths), np.nan, np.zeros_like(p)), where=lengths > 0)


def _positive(p: Array, n: int) -> Estimate:
    estimate = proportion((p > 0).sum(-1).astype(float), n)
    unknown = np.isnan(p).any(-1)
    return Estimate(np.where(unknown, np.nan, estimate.value), np.where(unknown, np.nan, estimate.se))


def _best_scale(p: Array, q: Array) -> Estimate:
    """E p / E q with its influence values (p − c q)/E q."""
    second = q.mean(-1, keepdims=True)
    scale = np.divide(p.mean(-1, keepdims=True), second, out=np.full_like(second, np.nan), where=second > 0)
    influence = mean(np.divide(p - scale * q, second, out=np.full_like(p, np.nan), where=second > 0))
    return Estimate(scale[..., 0], influence.se)


def _efficiency(p: Array, q: Array, g2: Array) -> Estimate:
    """(E p)²/(‖g‖² E q): the square of the mean is corrected by its variance; influence ρ²(2(p − p̄)/p̄ − (q − q̄)/q̄)."""
    first, second = mean(p), q.mean(-1)
    square = first.value**2 - np.nan_to_num(first.se) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        value = square / (g2 * second)
        slope_p, slope_q = 2 * first.value / (g2 * second), square / (g2 * second**2)
    return Estimate(value, mean(slope_p[..., None] * p - slope_q[..., None] * q).se)


def _group_sums(values: Array, group_of_guess: NDArray[np.int64], groups: int) -> Array:
    """Sums over the guesses of each group, (…, group)."""
    flat = values.reshape(-1, values.shape[-1])
    sums: Array = np.stack([np.bincount(group_of_guess, row, groups) for row in flat]).astype(np.float64)
    return sums.reshape(*values.shape[:-1], groups)


def _without_each(gram: Array, sizes: Array) -> Array:
    """`pair_mean` of the Gram matrix without each group in turn, (…, group)."""
    outer = np.outer(sizes, sizes)
    weighted, ones = gram * outer, outer
    rows, rows_of_ones = (m.sum(-1) - np.diagonal(m, axis1=-2, axis2=-1) for m in (weighted, ones))
    total, total_of_ones = rows.sum(-1, keepdims=True), rows_of_ones.sum()
    return (total - 2 * rows) / (total_of_ones - 2 * rows_of_ones)


def _variance(gram: Array, sizes: Array, errors: Array, group_of_guess: NDArray[np.int64]) -> Estimate:
    """mse − squared bias, with the jackknife over groups."""
    groups = gram.shape[-1]
    if groups < LEAST_GROUPS:
        return Estimate(np.full(errors.shape[:-1], np.nan), np.full(errors.shape[:-1], np.nan))
    sums = _group_sums(errors, group_of_guess, groups)
    without = (sums.sum(-1, keepdims=True) - sums) / (sizes.sum() - sizes) - _without_each(gram, sizes)
    estimate = jackknife(errors.mean(-1) - pair_mean(gram, sizes).value, without)
    # The jackknife counts the part of a mean over pairs that has no linear term twice (Efron and Stein 1981).
    twice = _variance_without_bias(gram) * student_widening(groups - 1) ** 2
    return Estimate(estimate.value, np.sqrt(np.maximum(estimate.se**2 - twice, estimate.se**2 / 2)))


def _directional_bias(gram: Array, sizes: Array, p: Array, group_of_guess: NDArray[np.int64], g2: Array) -> Estimate:
    """1 − ⟨ḡ, g⟩²/(‖ḡ‖²‖g‖²), both squares as means over pairs of groups; NaN where ‖ḡ‖² is not clearly positive."""
    groups = gram.shape[-1]
    if groups < LEAST_GROUPS:
        return Estimate(np.full(p.shape[:-1], np.nan), np.full(p.shape[:-1], np.nan))
    along = _group_sums(p, group_of_guess, groups) / sizes
    parallel = along[..., :, None] * along[..., None, :] / g2[..., None, None]
    squared_mean = gram + along[..., :, None] + along[..., None, :] - g2[..., None, None]
    length = pair_mean(squared_mean, sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 1 - pair_mean(parallel, sizes).value / length.value
        without = 1 - _without_each(parallel, sizes) / _without_each(squared_mean, sizes)
        estimate = jackknife(value, without)
        clear = length.value > 3 * length.se
    return Estimate(np.where(clear, estimate.value, np.nan), np.where(clear, estimate.se, np.nan))
