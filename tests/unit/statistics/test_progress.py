"""Intervals of step sizes and curvatures: against truths, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fganalysis.statistics.progress import Curved, along, at_step, estimates
from fganalysis.statistics.ratio import ratio_of_means, square_over_mean

Array = NDArray[np.float64]
REPEATS = 400


def covered(low: Array, high: Array, truth: float) -> float:
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_a_ratio_with_a_noisy_denominator_is_held(noise: float) -> None:
    """At noise 3 the denominator's mean is known to a fifth of itself. 400 repeats tell 91 % from 95 %."""
    rng = np.random.default_rng(0)
    below = 1 + noise * (rng.exponential(size=(REPEATS, 256)) - 1)
    above = 2 + rng.normal(size=(REPEATS, 256)) + 0.5 * (below - 1)
    ratio = ratio_of_means(above, below)
    assert abs(covered(ratio.low, ratio.high, 2.0) - 0.95) < 0.04
    square = square_over_mean(above, below)
    assert covered(square.low, square.high, 4.0) > 0.91
    symmetric = 1.96 * ratio.se
    if noise > 1:  # The delta method alone falls short above.
        assert (ratio.value + symmetric < 2.0).mean() > 0.04
        assert ((ratio.high - ratio.value) > (ratio.value - ratio.low)).mean() > 0.9


def test_a_ratio_has_no_upper_bound_where_its_denominator_may_be_zero() -> None:
    rng = np.random.default_rng(0)
    below = rng.normal(0.05, 1, size=(50, 100))
    ratio = ratio_of_means(1 + 0.1 * rng.normal(size=(50, 100)), np.where(below.mean(-1)[:, None] > 0, below, np.nan))
    positive = below.mean(-1) > 0
    unsure = positive & (below.mean(-1) < 1.5 * below.std(-1) / 10)
    assert unsure.any() and (ratio.high[unsure] == np.inf).all()
    assert np.isnan(ratio.low[~positive]).all()


def test_numbers_that_do_not_vary_have_no_interval_but_themselves() -> None:
    ratio = ratio_of_means(np.full((1, 64), 3.0), np.full((1, 64), 2.0))
    np.testing.assert_allclose([ratio.low, ratio.high, ratio.value], 1.5, rtol=1e-12)


def raw_of(vectors: Array, matrix: Array, gradient: Array) -> Curved:
    """Everything of samples of guesses (repeat, guess, weight)."""
    n = vectors.shape[1]
    images = vectors @ matrix
    forms = (vectors * images).sum(-1)
    halves = np.arange(n) % 2
    parts, total = [], 0.0
    for half in range(2):
        own = halves == half
        product = np.einsum("rnp,rp->rn", vectors, images[:, own].sum(1)) - own * forms
        parts.append(product / (own.sum() - own))
        total = total + product
    shape = np.ones(len(vectors))
    return Curved(
        vectors @ gradient,
        forms,
        total / (n - 1),
        np.stack(parts),
        gradient @ gradient * shape,
        gradient @ matrix @ gradient * shape,
    )


def test_intervals_of_means_of_guesses_hold_the_truth() -> None:
    """Gaussian guesses of mean g and covariance I: E ĝᵀHĝ = gᵀHg + tr H, and of the mean of m gᵀHg + tr H/m."""
    rng = np.random.default_rng(0)
    matrix, gradient = np.diag([4.0, 2.0, 1.0, 0.5, 0.5]), np.array([0.3, 0.3, 0.2, 0.1, 0.1])
    raw = raw_of(gradient + rng.normal(size=(REPEATS, 256, 5)), matrix, gradient)
    numbers = (1, 8, 256)
    found = estimates(raw, numbers, 2e-16)
    for place, number in enumerate(numbers):
        bend = gradient @ matrix @ gradient + np.trace(matrix) / number
        step = gradient @ gradient / bend
        for name, truth in (("curvature_along", bend), ("best_step", step)):
            estimate = found[name]
            share = covered(estimate.low[place], estimate.high[place], truth)
            assert share > 0.91, (name, number)
            assert share < 0.98 or np.asarray(estimate.wide)[place].mean() > 0.5, (name, number, share)


def test_noise_between_pairs_of_guesses_is_marked() -> None:
    """Where the mean guess is zero all noise of its curvature is between pairs, and the jackknife counts it twice."""
    rng = np.random.default_rng(0)
    raw = raw_of(rng.normal(size=(REPEATS, 64, 20)), np.eye(20), np.ones(20))
    found = estimates(raw, (1, 64), 2e-16)
    assert np.asarray(found["mean_curvature"].wide).mean() > 0.9
    values = along(raw, 64)
    jackknife = values.var(-1).mean() / 64
    assert 1.2 < jackknife / values.mean(-1).var() < 2.5


def test_means_of_an_indefinite_curvature_are_held_on_both_sides() -> None:
    """Where ḡᵀHḡ is known to no more than itself: a correction by it makes one side too short (90 % in all)."""
    rng = np.random.default_rng(0)
    matrix = np.diag(np.concatenate([np.linspace(0.2, 2, 10), -np.linspace(0.1, 1, 10)]))
    gradient = np.full(20, 0.15)
    raw = raw_of(gradient + rng.normal(size=(1000, 256, 20)), matrix, gradient)
    found = estimates(raw, (32,), 2e-16)["mean_curvature"]
    truth = gradient @ matrix @ gradient
    above, below = float((found.low > truth).mean()), float((found.high < truth).mean())
    assert above + below < 0.075 and max(above, below) < 0.055  # 1000 samples know 5 % to 1.4 %.


def test_losses_at_a_step_allow_for_tails_that_are_not_in_the_sample() -> None:
    """The sixth power of a normal number has kurtosis 58 and more: its mean is 15, and few of 256 are large."""
    rng = np.random.default_rng(0)
    curvature = rng.normal(size=(REPEATS, 256)) ** 2
    second = curvature + 0.02 * curvature**3
    found = at_step(1 - second, second, curvature, np.ones(REPEATS), np.ones(REPEATS), 2e-16)
    for name, truth in (("decrease_at_step", -0.3), ("curvature_at_step", 1.3)):
        estimate = found[name]
        share = covered(estimate.low, estimate.high, truth)
        assert share > 0.91 and (share < 0.98 or np.asarray(estimate.wide).mean() > 0.5), (name, share)
    light = rng.normal(size=(REPEATS, 256))
    usual = at_step(light, 1 + light, np.ones_like(light), np.ones(REPEATS), np.ones(REPEATS), 2e-16)
    assert not np.asarray(usual["decrease_at_step"].wide).any()
    assert abs(covered(usual["decrease_at_step"].low, usual["decrease_at_step"].high, 0.0) - 0.95) < 0.035
