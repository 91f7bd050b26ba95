"""Intervals of quantities whose truth is an estimate hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from fganalysis.statistics.estimated_truth import NOT_ESTIMATED, Groups, about_estimated_truth
from fganalysis.statistics.quantities import quantities
from tests.statistics.coverage import covered

GROUPS, GUESSES, REPEATS, NUMBERS = 64, 256, 600, 6
# 600 repeats at 95 %: 2.5 standard errors are 2.2 %.
LEAST, MOST = 0.928, 0.972


def drawn(scale: float, tilt: float, error: float, repeats: int = REPEATS) -> tuple:
    """Repeats of normal guesses of mean s g + tilt, unit noise, about a truth of this standard error of an entry."""
    generator = np.random.default_rng(3)
    gradient = np.full(NUMBERS, NUMBERS**-0.5)
    mean = scale * gradient + tilt * np.eye(NUMBERS)[0]
    guesses = mean + generator.standard_normal((repeats, GUESSES, NUMBERS))
    truths = gradient + error * np.sqrt(GROUPS) * generator.standard_normal((repeats, GROUPS, NUMBERS))
    centre = truths.mean(1)
    means = guesses.reshape(repeats, -1, GROUPS, NUMBERS).mean(1) - centre[:, None]
    apart = truths - centre[:, None]
    groups = Groups(
        means @ means.mT,
        means @ apart.mT,
        apart @ apart.mT,
        np.einsum("rap,rp->ra", apart, centre),
        (centre**2).sum(-1),
    )
    p, q = np.einsum("rnp,rp->rn", guesses, centre), (guesses**2).sum(-1)
    return gradient, mean, p, q, groups, np.arange(GUESSES) % GROUPS


@pytest.mark.parametrize(("scale", "tilt", "error"), [(1.0, 0.0, 0.05), (0.6, 0.4, 0.03)])
def test_intervals_hold_the_truth(scale: float, tilt: float, error: float) -> None:
    gradient, mean, p, q, groups, group_of_guess = drawn(scale, tilt, error)
    estimates, norm = about_estimated_truth(p, q, groups, group_of_guess, 2.0**-52)
    squared, second = float(((mean - gradient) ** 2).sum()), NUMBERS + float(mean @ mean)
    truths = {
        "squared_bias": squared,
        "shrinkage": float(mean @ gradient),
        "variance": float(NUMBERS),
        "best_scale": float(mean @ gradient) / second,
    }
    # Of fewer than 256 guesses intervals would be widened; those of 256 are not.
    for name, truth in truths.items():
        share = covered(estimates[name], truth)
        assert LEAST <= share <= (1.0 if bool(np.mean(estimates[name].wide) > 0.2) else MOST), (name, share)
    assert LEAST <= covered(norm, 1.0) <= 1.0
    for name, truth in (("mse", NUMBERS + squared), ("relative_bias", squared**0.5)):  # Marked as wide.
        assert estimates[name].wide is True or np.all(estimates[name].wide)
        known = ~np.isnan(estimates[name].low)
        assert np.mean((estimates[name].low <= truth) & (truth <= estimates[name].high) | ~known) >= LEAST
    values = estimates["squared_bias"].value
    assert abs(values.mean() - squared) < 3.5 * values.std() / np.sqrt(REPEATS)


def test_an_estimate_taken_for_exact_is_caught() -> None:
    _, _, p, q, groups, group_of_guess = drawn(1.0, 0.0, 0.2, 200)
    taken_for_exact = quantities(p, q, groups.guesses, group_of_guess, groups.squared_truth)
    assert covered(taken_for_exact["squared_bias"], 0.0) < 0.5
    corrected, _ = about_estimated_truth(p, q, groups, group_of_guess, 2.0**-52)
    assert covered(corrected["squared_bias"], 0.0) > 0.9


def test_what_is_not_estimated_is_nan_and_named() -> None:
    _, _, p, q, groups, group_of_guess = drawn(1.0, 0.0, 0.05, 2)
    estimates, _ = about_estimated_truth(p, q, groups, group_of_guess, 2.0**-52)
    assert {name for name, estimate in estimates.items() if np.isnan(estimate.value).all()} == set(NOT_ESTIMATED)


def test_a_gradient_lost_in_its_error_has_no_relative_numbers() -> None:
    _, _, p, q, groups, group_of_guess = drawn(1.0, 0.0, 2.0, 50)
    estimates, norm = about_estimated_truth(p, q, groups, group_of_guess, 2.0**-52)
    assert np.mean(np.isnan(estimates["relative_bias"].value)) > 0.9
    assert np.mean(np.isnan(estimates["shrinkage"].value)) > 0.9
    assert not np.isnan(estimates["variance"].value).any() and not np.isnan(norm.value).any()
