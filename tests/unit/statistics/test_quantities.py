"""Every quantity from the scalars that guesses leave: what its interval covers and where its bounds lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fganalysis.statistics import quantities
from tests.statistics.coverage import HELD, covered
from tests.unit.statistics.drawn_guesses import ALONG, GUESSES, Sample, along_random_directions, simulated


def test_every_interval_covers_its_truth() -> None:
    """1500 repeats know a coverage to .0056; `studies.calibration` counts over real guesses."""
    sample, truth = simulated(np.random.default_rng(1), 512, 32, repeats=1500)
    found = sample.quantities()
    assert set(truth) < set(found)
    for name, expected in truth.items():
        assert abs(covered(found[name], expected) - 0.95) <= 3 * 0.0056, (name, covered(found[name], expected))
        assert np.mean(found[name].short) < 0.01, name


POWERS = {"bias": 1, "squared_bias": 2, "variance": 2, "mse": 2}


@given(
    seed=st.integers(0, 1000),
    exponent=st.floats(-60, 60),
    kind=st.sampled_from(["noisy", "short", "exact", "no gradient", "no guess"]),
)
@settings(max_examples=40, deadline=None)
def test_quantities_scale_as_their_units_say(seed: int, exponent: float, kind: str) -> None:
    """Every part of every quantity, over 120 decades of the loss; "bias" is a length, as the gradient is."""
    rng, dimension = np.random.default_rng(seed), 7
    gradient = rng.normal(size=dimension) * (kind != "no gradient")
    guesses = gradient + (kind in ("noisy", "no gradient")) * rng.normal(size=(1, 64, dimension))
    guesses = {"short": 1e-2 * guesses + 1e-3 * rng.normal(size=guesses.shape), "no guess": 0 * guesses}.get(
        kind, guesses
    )
    inner, square, gram, of_guess, squared, _ = Sample(guesses, gradient, 8).arrays()
    one = quantities.quantities(inner, square, gram, of_guess, squared)
    scale = 10.0**exponent
    other = quantities.quantities(scale**2 * inner, scale**2 * square, scale**2 * gram, of_guess, scale**2 * squared)
    for name, estimate in one.items():
        unit = scale ** POWERS.get(name, 0)
        before, after = (
            np.array([e.value, e.se, e.low, e.high]) for e in (estimate.scaled(np.float64(unit)), other[name])
        )
        # What is zero but for rounding is relative to what it is a difference of.
        size = unit * (1 if kind == "no gradient" else (gradient**2).sum() ** (POWERS.get(name, 0) / 2))
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-10 * size, err_msg=name)
        # Flags too, but where a comparison is a matter of rounding.
        if kind != "exact":
            assert bool(np.all(other[name].wide == estimate.wide)), name
            np.testing.assert_allclose(other[name].tail, estimate.tail, rtol=1e-5, err_msg=name)


@given(
    seed=st.integers(0, 10_000),
    dimension=st.integers(1, 40),
    n_guesses=st.sampled_from([32, 64, 256]),
    noise=st.sampled_from([0.0, 1e-9, 1e-7, 1e-4, 0.1, 10.0]),
    scale=st.sampled_from([0.0, 1e-6, 0.3, 1.0, -1.0, 50.0]),
    across=st.sampled_from([0.0, 1e-8, 0.5, 30.0]),
    in_signs=st.booleans(),
    single=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_bounds_are_in_order_and_where_a_truth_can_be(
    seed: int, dimension: int, n_guesses: int, noise: float, scale: float, across: float, in_signs: bool, single: bool
) -> None:
    """ĝ = s g + a bias across + noise; where there is no noise, the bounds hold the exact value of everything."""
    rng, precision = np.random.default_rng(seed), float(np.finfo(np.float32 if single else np.float64).eps)
    gradient = rng.normal(size=dimension).astype(np.float32).astype(float)
    bias = (dimension > 1) * across * rng.normal(size=dimension)
    for _ in range(2):  # The second time takes off what rounding left.
        bias = bias - gradient * (bias @ gradient) / (gradient @ gradient)
    shape = (2, n_guesses, dimension)
    drawn = rng.choice([-1.0, 1.0], size=shape) if in_signs else rng.normal(size=shape)
    mean_guess = scale * gradient + bias
    found = Sample(mean_guess + noise * drawn, gradient, 8).quantities(precision)
    for name, estimate in found.items():
        low, high = estimate.low, estimate.high
        assert np.all((low <= high) | np.isnan(low)), name
        assert np.all((low <= estimate.value) | (low == 0) | np.isnan(low)), name
        least, most = {"cosine": (-1, 1), "shrinkage": (-np.inf, np.inf), "best_scale": (-np.inf, np.inf)}.get(
            name, (0, 1 if name in ("directional_bias", "efficiency", "descent_probability") else np.inf)
        )
        assert np.all((low >= least) & (high <= most) | np.isnan(low)), name
        assert np.all((estimate.se >= 0) | np.isnan(estimate.se)), name
    assert np.all(found["mse"].value >= 0)
    value = found["directional_bias"].value
    assert np.all((value >= 0) & (value <= 1) | np.isnan(value))
    if noise == 0:
        truth = exact(mean_guess, gradient, across == 0 or dimension == 1) | {"descent_probability": float(scale > 0)}
        for name, expected in truth.items():
            low, high = found[name].low, found[name].high
            assert np.all((low <= expected) & (expected <= high) | np.isnan(low)), (name, low, expected, high)


def exact(guess: np.ndarray, gradient: np.ndarray, along: bool) -> dict[str, float]:
    """Of an estimator whose guesses are all alike, along the gradient or not."""
    inner, square, squared = float(guess @ gradient), float(guess @ guess), float(gradient @ gradient)
    error = float(((guess - gradient) ** 2).sum())
    cosine = 0.0 if square == 0 else float(np.clip(inner / np.sqrt(square * squared), -1.0, 1.0))
    if along and square > 0:
        cosine = float(np.sign(inner))
    return {
        "squared_bias": error,
        "bias": error**0.5,
        "relative_bias": (error / squared) ** 0.5,
        "shrinkage": inner / squared,
        "directional_bias": max(1 - cosine**2, 0.0),
        "variance": 0.0,
        "mse": error,
        "cosine": cosine,
        "efficiency": cosine**2,
        "best_scale": np.nan if square == 0 else inner / square,
    }


def test_mse_is_squared_bias_plus_variance() -> None:
    sample, _ = simulated(np.random.default_rng(2), 256, 16)
    found = sample.quantities()
    np.testing.assert_allclose(found["mse"].value, found["squared_bias"].value + found["variance"].value, rtol=1e-12)


def test_too_few_groups_give_no_interval_and_no_bias() -> None:
    sample, _ = simulated(np.random.default_rng(2), 6, 3)
    found = sample.quantities()
    for name in ("squared_bias", "bias", "variance", "directional_bias"):
        assert np.isnan(found[name].value) and np.isnan(found[name].se)
    assert np.isfinite(found["mse"].value) and np.isnan(found["mse"].se)  # Six guesses are too few for any interval.


def test_a_zero_gradient_gives_nan_where_a_ratio_to_it_is_asked() -> None:
    sample, _ = simulated(np.random.default_rng(3), 64, 8)
    p, q, gram, groups, squared, _ = sample.arrays()
    found = quantities.quantities(0 * p, q, gram, groups, 0 * squared)
    for name in ("relative_bias", "shrinkage", "cosine", "efficiency"):
        assert np.isnan(found[name].value), name
    assert np.isfinite(found["bias"].value)


def test_nothing_is_wide_where_guesses_are_all_alike_but_for_rounding() -> None:
    """Whatever their bias: here a tenth of the gradient, along it or across. Noise a million times larger is seen."""
    generator, n, groups = np.random.default_rng(0), 256, 64
    flagged = []
    for noise in (1e-8, 1e-2):
        bias = np.tile(0.1 * np.eye(3)[:, None], (1, 200, 1))
        means = bias[:, :, None] + noise * generator.normal(size=(3, 200, groups, 3))
        products = np.repeat(means[..., 0] + 1, n // groups, axis=-1)
        lengths = np.repeat((means**2).sum(-1) + 2 * means[..., 0] + 1, n // groups, axis=-1)
        of_guess = np.repeat(np.arange(groups), n // groups)
        single = float(np.finfo(np.float32).eps)
        found = quantities.quantities(products, lengths, means @ means.mT, of_guess, np.ones((3, 200)), single)
        names = ("squared_bias", "bias", "relative_bias", "directional_bias")
        flagged.append([float(np.mean(found[name].wide)) for name in names])
    assert not any(flagged[0]) and max(flagged[1]) > 0


def tailed(rng: np.random.Generator, repeats: int, factor: str) -> np.ndarray:
    size = (repeats, GUESSES, 1)
    factors = 1 + rng.standard_t(3, size=size) if factor == "t" else rng.lognormal(-0.5, 1.0, size=size)
    return factors * along_random_directions(rng, repeats)


@pytest.mark.parametrize(("factor", "square"), [("t", 4.0), ("log-normal", np.e)])
def test_intervals_of_guesses_with_heavy_tails_say_that_they_may_be_too_short(factor: str, square: float) -> None:
    """A factor of 1 + t₃ or a log-normal one on each guess: ‖ĝ‖² then has no variance, or none yet."""
    found = Sample(tailed(np.random.default_rng(0), 400, factor), ALONG, 16).quantities()
    for name, truth in {"variance": 22 * square - 1, "mse": 22 * square - 1, "best_scale": 1 / 22 / square}.items():
        assert covered(found[name], truth) < HELD[0]  # Which no formula mends: the tail has not been met.
        assert np.mean(found[name].short) > 0.5, name
    light = Sample(along_random_directions(np.random.default_rng(0), 400), ALONG, 16).quantities()
    for name in ("shrinkage", "variance", "cosine", "bias"):
        assert np.mean(light[name].short) < 0.2, name
