"""The variance of guesses, a mean of squared errors less a squared bias, and its interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.guess_scalars import errors_about, group_means
from fganalysis.statistics.intervals import TAIL_PROBABILITY, Array, Estimate, Shape, shape, skewed
from fganalysis.statistics.pareto_tail import tail_shape
from fganalysis.statistics.squared_norm import LEAST_GROUPS, SquaredNorm, squared_norm

# Tuned by `python -m studies.calibration`. To tune it again, change it, run the study with `--out` a new folder, and
# read the rows of `variance` on its page: every wide cell must be marked wide, and few others. A smaller value marks
# more.
NOT_KNOWN = 0.1  # An interval is wide if more than this share of the variance is known only by its expectation.


def variance(value: Array, errors: Array, gram: Array, sizes: Array, group_of_guess: NDArray[np.int64]) -> Estimate:
    """tr Cov ĝ = E‖ĝ − f‖² − ‖ḡ − f‖², with the interval from errors about f = s g.

    The value does not depend on f, but the errors do. With ĝ = ḡ + ξ the error of a guess is

        ‖ĝ − f‖² = ‖ξ‖² + 2⟨ξ, ḡ − f⟩ + ‖ḡ − f‖²

    If f = g and the guess is much shorter than the gradient, the second term is larger than ‖ξ‖² by the factor ‖g‖/‖ξ‖.
    The group means estimate this term, but not precisely enough to remove it. So f = s g, where s is 1 if the interval
    of the shrinkage includes 1, and otherwise its bound nearest to 1. Then ḡ − f has at most two standard errors of
    ⟨ξ̄, g⟩ along the gradient. This leaves a second term with the variance 16 Var⟨ξ, g⟩²/(n‖g‖⁴), which for normal
    noise is 1/n of the variance of ‖ξ‖².

    Args:
        value: the estimated variance, (…). errors: ‖ĝ − s g‖² of every guess, (…, guess). gram: ⟨m_a − s g, m_b − s g⟩,
            (…, group, group). sizes: guesses in each group, (group,). group_of_guess: (guess,).
    """
    about_f = less_squared_bias(errors, squared_norm(gram, sizes), gram, group_of_guess)
    shift = value - about_f.value
    return replace(about_f, value=value, low=about_f.low + shift, high=about_f.high + shift)


def less_squared_bias(
    errors: Array, squared_bias: SquaredNorm, gram: Array, group_of_guess: NDArray[np.int64]
) -> Estimate:
    """The mean of ``errors`` less a squared bias, with its interval; NaN for fewer than 4 groups.

    With errors ‖ĝ − g‖² this is the variance. With errors ⟨ĝ − g, ĝ' − g⟩ of two guesses on the same rows it is the
    part of the variance between rows. Errors and bias may be about any fixed point instead of g.

    With ĝ = g + δ + ξ and U the mean of ⟨m_a − g, m_b − g⟩ over a ≠ b, the error of the estimate has two uncorrelated
    parts:

        (mean of ‖ξ‖² − its expectation)  −  mean of ⟨ξ_a, ξ_b⟩ over a ≠ b

    **The first part** has the influence values e − 2⟨ξ, δ⟩, where e is the error of a guess. ⟨ξ, δ⟩ is known by group
    only, so the influence is regressed on e over the groups. Its variance is the part along e, in which every guess
    counts, plus the residual, which has the degrees of freedom of the groups. Its skewness is that of e. The groups
    give δ + ξ̄ instead of δ. This adds 4 ξ̄ᵀ Cov(ξ) ξ̄/n, with expectation 2v₀, which is subtracted as far as
    2⟨ξ, δ⟩ varies that much over the groups.

    **The second part** is the noise of U without a bias, with variance v₀ (`fganalysis.statistics.squared_norm`). It is
    the only part where ‖ξ‖² does not vary, as for minibatches of one row of two and for signs. For noise in one
    dimension it is minus a centred squared normal number.

    On each side, the distances of the bounds of both parts from the value are combined as the root of the sum of their
    squares (Zou and Donner 2008). The interval is wide where much of the first part may come from ξ̄ and be far from
    its expectation, as in few dimensions.

    Source: docs/mathematics.md#interval-of-the-variance.
    """
    groups = gram.shape[-1]
    value = errors.mean(-1) - squared_bias.value
    if groups < LEAST_GROUPS:
        return Estimate.missing(value.shape)
    error_shape = shape(errors)
    by_group = group_means(errors, group_of_guess, groups)
    by_bias = (gram * (1 - np.eye(groups))).sum(-1) * 2 / (groups - 1)
    by_group, by_bias = (part - part.mean(-1, keepdims=True) for part in (by_group, by_bias))
    influence = by_group - by_bias
    squares = (by_group**2).sum(-1)
    slope = np.divide((influence * by_group).sum(-1), squares, out=np.ones_like(squares), where=squares > 0)
    residual = ((influence - slope[..., None] * by_group) ** 2).sum(-1) / (groups * (groups - 2))
    along_errors = (slope * error_shape.se) ** 2
    both = along_errors + residual
    noise, of_bias = squared_bias.variance_without_bias, (by_bias**2).sum(-1) / (groups * (groups - 1))
    linear = np.maximum(both - np.minimum(2 * noise, of_bias), 0.0)
    share = np.divide(along_errors, both, out=np.ones_like(both), where=both > 0)
    # 1/(degrees of freedom) of both together, after Satterthwaite; `skewed` computes it from the kurtosis.
    n = error_shape.n
    inverse = share**2 * (error_shape.kurtosis - 1) / (2 * n) + (1 - share) ** 2 / (groups - 2)
    skewness = np.copysign(share**1.5, slope) * error_shape.skewness
    of_mean = skewed(value, Shape(n, np.sqrt(linear), skewness, 1 + 2 * n * inverse))
    below, above = squared_bias.reach(np.zeros_like(value), TAIL_PROBABILITY)
    low = value - np.hypot(np.maximum(value - of_mean.low, 0.0), below)
    high = value + np.hypot(np.maximum(of_mean.high - value, 0.0), above)
    in_one_dimension = squared_bias.skewness**2 / 8
    wide = np.asarray(2 * noise * in_one_dimension > NOT_KNOWN * (linear + noise))
    return Estimate(value, np.sqrt(linear + noise), low, high, wide, tail_shape(errors))


def about_scaled_gradient(
    scale: Array, p: Array, q: Array, gram: Array, group_of_guess: NDArray[np.int64], squared_gradient: Array
) -> tuple[Array, Array]:
    """‖ĝ − s g‖² of every guess, (…, guess), and ⟨m_a − s g, m_b − s g⟩, (…, group, group), as `variance` needs them.

    scale: s (…). p, q: ⟨ĝ, g⟩ and ‖ĝ‖², (…, guess). gram: ⟨m_a − g, m_b − g⟩. squared_gradient: ‖g‖² (…).
    """
    g2 = squared_gradient[..., None]
    along = group_means(p, group_of_guess, gram.shape[-1]) - g2  # ⟨m_a − g, g⟩
    less = 1 - scale[..., None]
    moved = less * along
    return errors_about(scale, p, q, squared_gradient), gram + moved[..., :, None] + moved[..., None, :] + (
        less**2 * g2
    )[..., None]
