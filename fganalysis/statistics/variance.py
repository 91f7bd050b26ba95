"""The variance of guesses, a mean of squared errors less a squared bias, and its interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.guess_scalars import errors_about, group_means
from fganalysis.statistics.intervals import TAIL_PROBABILITY, Array, Estimate, Shape, shape, skewed
from fganalysis.statistics.pareto_tail import tail_shape
from fganalysis.statistics.squared_norm import LEAST_GROUPS, SquaredNorm, squared_norm

NOT_KNOWN = 0.1  # Of a variance: the share known to its expectation alone from which on intervals cover too much.


def variance(value: Array, errors: Array, gram: Array, sizes: Array, group_of_guess: NDArray[np.int64]) -> Estimate:
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
    by_group = group_means(errors, group_of_guess, groups)
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


def about_scaled_gradient(
    scale: Array, p: Array, q: Array, gram: Array, group_of_guess: NDArray[np.int64], squared_gradient: Array
) -> tuple[Array, Array]:
    """‖ĝ − s g‖² of every guess and ⟨m_a − s g, m_b − s g⟩, for a number s: see `variance`."""
    g2 = squared_gradient[..., None]
    along = group_means(p, group_of_guess, gram.shape[-1]) - g2  # ⟨m_a − g, g⟩
    less = 1 - scale[..., None]
    moved = less * along
    return errors_about(scale, p, q, squared_gradient), gram + moved[..., :, None] + moved[..., None, :] + (
        less**2 * g2
    )[..., None]
