"""measure() where the truth is an estimate: with standard errors, or by a baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fganalysis as fga
from tests.unit.measuring.measure.laws import GRADIENT, NUMBERS, SQUARE, VARIANCE, one_a_call, tilted, with_numpy

ALL = {"space": "parameter", "layer": "all"}
ERROR = 0.2  # Of every entry of an estimated gradient.


def perturbed(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: part + ERROR * generator.standard_normal(part.shape) for name, part in GRADIENT.items()}


def errors() -> dict[str, np.ndarray]:
    return {name: np.full(part.shape, ERROR) for name, part in GRADIENT.items()}


def exact(n: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: np.tile(part, (n, *[1] * part.ndim)) for name, part in GRADIENT.items()}


def test_the_squared_error_of_the_truth_is_taken_off_the_squared_bias() -> None:
    """Over 16 estimated truths; taken for exact, they add 8 · 0.2² = 0.32 to the squared bias of exact guesses."""
    corrected, taken_for_exact = [], []
    for seed in range(16):
        estimate = perturbed(seed)
        truth = fga.truth(estimate, standard_error=errors())
        measured = fga.measure(exact, truth, n_guesses=64, seed=seed, block_size=1)
        corrected.append(float(measured["squared_bias"].sel(ALL)))
        taken_for_exact.append(sum(float(((estimate[name] - part) ** 2).sum()) for name, part in GRADIENT.items()))
    assert np.mean(taken_for_exact) == pytest.approx(NUMBERS * ERROR**2, rel=0.3)
    standard_error = np.std(corrected) / np.sqrt(len(corrected))
    assert abs(np.mean(corrected)) < 3 * standard_error
    assert standard_error < 0.2 * NUMBERS * ERROR**2  # So that the error, if it were left in, would be seen.


@pytest.mark.parametrize(("draw", "bias"), [(with_numpy, 0.0), (tilted, 0.5)])
def test_intervals_take_the_error_of_the_truth_in(draw: Any, bias: float) -> None:
    truth = fga.truth(perturbed(1), standard_error=errors())
    measured = fga.measure(draw, truth, n_guesses=8192).sel(ALL)
    about_exact = fga.measure(draw, GRADIENT, n_guesses=8192).sel(ALL)
    for name, expected in (("squared_bias", bias**2), ("variance", VARIANCE), ("mse", VARIANCE + bias**2)):
        assert float(measured[name + "_low"]) <= expected <= float(measured[name + "_high"]), name
    assert float(measured["bias_high"]) > float(about_exact["bias_high"])
    # The variance of a guess is the same about any point.
    assert float(measured["variance"]) == pytest.approx(float(about_exact["variance"]), rel=1e-9)
    assert measured.attrs["truth"] == "estimated, with standard errors"
    relative = np.sqrt(NUMBERS * ERROR**2 / SQUARE)
    assert measured.attrs["relative_truth_error"] == pytest.approx(relative, rel=0.3)
    assert float(measured["gradient_norm"]) == pytest.approx(SQUARE**0.5, abs=3 * ERROR)


def test_no_error_at_all_is_an_exact_truth() -> None:
    nothing = {name: 0 * part for name, part in GRADIENT.items()}
    estimated = fga.measure(tilted, fga.truth(GRADIENT, standard_error=nothing)).sel(ALL)
    measured = fga.measure(tilted, GRADIENT).sel(ALL)
    for name in ("squared_bias", "squared_bias_low", "squared_bias_high", "variance_low", "shrinkage"):
        assert float(estimated[name]) == pytest.approx(float(measured[name]), rel=1e-9), name
    # From 64 groups, not from 4096 guesses.
    assert float(estimated["shrinkage_se"]) == pytest.approx(float(measured["shrinkage_se"]), rel=0.25)


@pytest.mark.parametrize(("draw", "bias"), [(with_numpy, 0.0), (tilted, 0.5)])
def test_a_baseline_stands_for_the_truth(draw: Any, bias: float) -> None:
    measured = fga.measure(draw, None, n_guesses=2**13, baseline=with_numpy).sel(ALL)
    assert float(measured["bias_low"]) <= bias <= float(measured["bias_high"])
    assert (float(measured["bias_low"]) > 0) == (bias > 0)
    inner = SQUARE + bias * GRADIENT["a"][0]
    assert float(measured["shrinkage_low"]) < inner / SQUARE < float(measured["shrinkage_high"])
    assert float(measured["variance_low"]) < VARIANCE < float(measured["variance_high"])
    assert measured.attrs["truth"] == "estimated by the baseline with_numpy"
    for name in ("cosine", "directional_bias", "descent_probability", "cosine_q50"):
        assert np.isnan(measured[name])


def test_a_baseline_may_make_one_guess_a_call_or_be_made_before() -> None:
    alone = fga.measure(tilted, None, n_guesses=256, baseline=one_a_call)
    assert alone.layer.values.tolist() == ["a", "b", "c", "all"]
    before = with_numpy(256, np.random.default_rng(7))
    measured = fga.measure(tilted, None, n_guesses=256, baseline=before)
    halves = [{name: part[half] for name, part in before.items()} for half in (slice(0, 100), slice(100, None))]
    again = fga.measure(tilted, None, n_guesses=256, baseline=iter(halves))
    np.testing.assert_array_equal(measured["gram"], again["gram"])
    assert float(measured["squared_bias_high"].sel(ALL)) > 0.25


def test_a_draw_and_itself_as_baseline_share_no_noise() -> None:
    """Else the errors would cancel: their mean difference has the variance of both."""
    values = [
        float(fga.measure(with_numpy, None, n_guesses=256, seed=seed, baseline=with_numpy)["gram"].sel(ALL).mean())
        for seed in range(8)
    ]
    assert np.mean(values) == pytest.approx(2 * VARIANCE / 256, rel=0.5)


def test_few_guesses_have_no_groups_and_no_bias() -> None:
    measured = fga.measure(with_numpy, None, n_guesses=32, baseline=with_numpy).sel(ALL)
    assert np.isnan(measured["bias"]) and np.isnan(measured["shrinkage"])
