"""Quantities of guesses whose exact gradient is itself an estimate: NumPy arrays only.

The gradient is known by the means t_a of A groups, independent of each other and of the guesses, each of mean g: group
means of the draws of an unbiased estimator, or numbers made of standard errors (`fganalysis.measuring.measure`). T is
their mean. Guesses have the group means m_a. Then m_a − t_a are independent with mean δ = ḡ − g, so that

    ‖δ‖² is estimated by the mean of ⟨m_a − t_a, m_b − t_b⟩ over a ≠ b

without a bias, and the law of `fganalysis.statistics.squared_norm` takes in the noise of both. The mean of ‖m̄ − T‖²
would exceed ‖δ‖² by the squared error of the truth, E‖T − g‖², and by that of the mean guess. Likewise

    ⟨ḡ, g⟩ by ⟨m̄, T⟩      ‖g‖² by the mean of ⟨t_a, t_b⟩ over a ≠ b

The variance of a guess is the same about any fixed point, so it is taken about T, and the error of T does not matter.
Ratios have influence values for each group (delta method). Quantities that are not smooth functions of such means
(`NOT_ESTIMATED`) are NaN.

Derivation: docs/mathematics.md#estimated-truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.guess_scalars import group_means
from fganalysis.statistics.intervals import Z95, Array, Estimate, shape, skewed
from fganalysis.statistics.quantities import quantities
from fganalysis.statistics.squared_norm import LEAST_GROUPS, mean_over_pairs, root, squared_norm

NOT_ESTIMATED = ("cosine", "directional_bias", "descent_probability")
CLEARLY = 5.0  # ‖g‖² and ⟨ḡ, g⟩ must be this many standard errors from zero to be divided by.
# Two bounds of 97.5 % each hold together with 95 %: this many times the distance of one of 95 %, for a normal number.
BOTH = 2.241402727604947 / Z95


@dataclass(frozen=True)
class Groups:
    """Inner products between the deviations of group means from T, (…, group, group), and with T, (…, group).

    Attributes:
        guesses: ⟨m_a − T, m_b − T⟩. cross: ⟨m_a − T, t_b − T⟩. truth: ⟨t_a − T, t_b − T⟩. along: ⟨t_a − T, T⟩.
        squared_truth: ‖T‖², (…).
    """

    guesses: Array
    cross: Array
    truth: Array
    along: Array
    squared_truth: Array

    def errors(self) -> Array:
        """⟨m_a − t_a, m_b − t_b⟩."""
        return self.guesses - self.cross - self.cross.swapaxes(-1, -2) + self.truth

    def gradients(self) -> Array:
        """⟨t_a, t_b⟩."""
        return self.truth + self.along[..., :, None] + self.along[..., None, :] + self.squared_truth[..., None, None]


def about_estimated_truth(
    p: Array, q: Array, groups: Groups, group_of_guess: NDArray[np.int64], precision: float
) -> tuple[dict[str, Estimate], Estimate]:
    """Every reported quantity, and the norm of the gradient.

    Args:
        p, q: ⟨ĝ, T⟩ and ‖ĝ‖² of every guess, (…, guess). group_of_guess, precision: as in `quantities`.
    """
    n_guesses, n_groups = p.shape[-1], groups.guesses.shape[-1]
    about_truth = quantities(p, q, groups.guesses, group_of_guess, groups.squared_truth, precision)
    of_errors = quantities(p, q, groups.errors(), group_of_guess, groups.squared_truth, precision)
    tail = about_truth["bias"].tail
    squared_bias, bias = (replace(of_errors[name], tail=tail) for name in ("squared_bias", "bias"))
    missing = Estimate.missing(p.shape[:-1])
    known = {name: missing for name in about_truth} | {
        "squared_bias": squared_bias,
        "bias": bias,
        "variance": about_truth["variance"],
    }
    if n_groups < LEAST_GROUPS:
        return known, missing
    sizes = np.bincount(group_of_guess, minlength=n_groups).astype(float)
    weights, gradients = sizes / sizes.sum(), groups.gradients()
    law = squared_norm(gradients, sizes)
    square = law.estimate()
    clear = np.asarray(square.value > CLEARLY * square.se)
    norm = root(square.of_few(n_guesses))
    inner, second, whole = p.mean(-1), q.mean(-1), np.where(clear, mean_over_pairs(gradients, sizes), np.nan)
    of_inner = (group_means(p, group_of_guess, n_groups) - inner[..., None]) + (
        np.einsum("b,...ba->...a", weights, groups.cross) + groups.along
    )
    apart = gradients * (1 - np.eye(n_groups)) * weights
    of_whole = 2 * (apart.sum(-1) / (1 - weights) - mean_over_pairs(gradients, sizes)[..., None])
    of_second = group_means(q, group_of_guess, n_groups) - second[..., None]
    inner_shape = shape(of_inner)
    along = np.where(np.abs(inner) > CLEARLY * inner_shape.se, inner, np.nan)

    def ratio(name: str, value: Array, influence: Array) -> Estimate:
        estimate = skewed(value, shape(value[..., None] + influence)).of_few(n_guesses)
        return replace(estimate, tail=about_truth[name].tail)

    shrinkage, scale = inner / whole, inner / second
    efficiency = along**2 / (whole * second)
    known |= {
        "shrinkage": ratio("shrinkage", shrinkage, (of_inner - shrinkage[..., None] * of_whole) / whole[..., None]),
        "best_scale": ratio("best_scale", scale, (of_inner - scale[..., None] * of_second) / second[..., None]),
        "efficiency": ratio(
            "efficiency",
            efficiency,
            efficiency[..., None]
            * (2 * of_inner / along[..., None] - of_whole / whole[..., None] - of_second / second[..., None]),
        ).within(0.0, 1.0),
        "relative_bias": _quotient(bias, norm).where(clear),
        "mse": _sum(known["variance"], squared_bias, about_truth["mse"].tail),
    }
    return known, norm


def _reach(estimate: Estimate) -> tuple[Array, Array]:
    """Bounds of 97.5 %."""
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    return np.maximum(estimate.value - BOTH * below, 0.0), estimate.value + BOTH * above


def _sum(first: Estimate, second: Estimate, tail: Array | float) -> Estimate:
    """The sum of two numbers that are not negative, with the sums of their bounds: they may depend on each other."""
    (low, high), (other_low, other_high) = _reach(first), _reach(second)
    return _bounded(first.value + second.value, low + other_low, high + other_high, tail)


def _quotient(first: Estimate, second: Estimate) -> Estimate:
    """The quotient, with the quotients of the bounds."""
    (low, high), (other_low, other_high) = _reach(first), _reach(second)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _bounded(first.value / second.value, low / other_high, high / other_low, first.tail)


def _bounded(value: Array, low: Array, high: Array, tail: Array | float) -> Estimate:
    return Estimate(value, (high - low) / (2 * Z95), low, high, np.ones(value.shape, dtype=bool), tail)
