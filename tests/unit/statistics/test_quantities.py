"""Every quantity from the scalars that guesses leave: what its interval covers, where its bounds lie, what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fganalysis.statistics import quantities
from fganalysis.statistics.directional_bias import squared_tangent
from fganalysis.statistics.efficiency import efficiency
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.rounding import DOUBLE
from fganalysis.statistics.squared_norm import squared_norm
from fganalysis.statistics.variance import about_scaled_gradient, less_squared_bias
from tests.statistics.coverage import HELD, covered


@dataclass(frozen=True)
class Sample:
    """Guesses of many repeats, (repeat, guess, number), dealt to groups."""

    guesses: np.ndarray
    gradient: np.ndarray
    groups: int

    def arrays(self, precision: float = DOUBLE) -> tuple:
        """The arguments of `moments.quantities`, from guesses rounded to this precision."""
        kind = np.float32 if precision > DOUBLE else np.float64
        guesses, gradient = self.guesses.astype(kind), self.gradient.astype(kind)
        n = guesses.shape[1]
        of_guess = np.arange(n) // (n // self.groups)
        # The sampler's: sums in the precision of the guesses, Gram matrices in double.
        means = guesses.reshape(len(guesses), self.groups, -1, guesses.shape[-1]).mean(2).astype(float) - gradient
        parts = (guesses @ gradient, (guesses**2).sum(-1), means @ means.mT)
        squared = np.full(len(guesses), (gradient.astype(float) ** 2).sum())
        return *(part.astype(float) for part in parts), of_guess, squared, precision

    def quantities(self, precision: float = DOUBLE) -> dict[str, Estimate]:
        return quantities.quantities(*self.arrays(precision))


def simulated(rng: np.random.Generator, n_guesses: int, groups: int, scale: float = 1.0, repeats: int = 1) -> tuple:
    """Guesses ĝ = 0.8 g + noise in 12 dimensions, and the truth of every quantity."""
    dimension = 12
    gradient = np.zeros(dimension)
    gradient[0] = 2.0 * scale
    guesses = 0.8 * gradient + rng.normal(size=(repeats, n_guesses, dimension)) * scale
    second = 0.64 * 4 + dimension
    truth = {
        "squared_bias": 0.04 * 4 * scale**2,
        "bias": 0.4 * scale,
        "relative_bias": 0.2,
        "shrinkage": 0.8,
        "directional_bias": 0.0,
        "variance": dimension * scale**2,
        "mse": (0.16 + dimension) * scale**2,
        "efficiency": (0.8 * 4) ** 2 / (4 * second),
        "best_scale": 0.8 * 4 / second,
    }
    return Sample(guesses, gradient, groups), truth


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


def test_an_efficiency_says_where_its_interval_is_wide() -> None:
    """Near zero, and where three guesses more, as long as the longest, would lower it by more than its noise shows.

    That noise is small where a guess's length and its part along the gradient rise together, p = (1 + q)/2.
    """
    generator, n = np.random.default_rng(0), 4096
    noise, lengths = 0.05 * generator.normal(size=n), generator.exponential(size=n)
    products = np.stack([1 + 20 * noise, 20 * noise, (1 + lengths) / 2 + noise])
    found = efficiency(products, np.stack([np.ones(n), np.ones(n), lengths]), np.ones(3))
    assert np.asarray(found.wide).tolist() == [False, True, True]


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


def test_the_error_of_an_efficiency_near_zero_is_no_accident_of_its_own_value() -> None:
    """The delta method's 2ρ se is zero where ρ happens to be: a quarter of these errors would be under half of theirs.

    2000 samples of 512 guesses, of none to one standard error along the gradient; an efficiency's spread to 5 %.
    """
    generator = np.random.default_rng(0)
    for along in (0.0, 0.5, 1.0):
        products = generator.normal(along / 512**0.5, size=(2000, 512))
        found = efficiency(products, np.ones_like(products), np.ones(2000))
        assert np.quantile(found.se, 0.05) > 0.5 * found.value.std()
        assert 0.6 < np.median(found.se) / found.value.std() < 1.2
        assert (np.abs(found.value - along**2 / 512) > 1.96 * found.se).mean() < 0.05


GUESSES = 256
Draw = Callable[[np.random.Generator, int], np.ndarray]  # Generator, repeats → (repeat, guess, number).
ALONG = np.eye(20)[0]  # The gradient, of unit length, of what is drawn in 20 dimensions.
ROWS = np.random.default_rng(5).normal(size=(4, 6))  # Gradients of four examples.


def along_random_directions(rng: np.random.Generator, repeats: int) -> np.ndarray:
    directions = rng.normal(size=(repeats, GUESSES, len(ALONG)))
    return directions[..., :1] * directions


def projected(rng: np.random.Generator, repeats: int) -> np.ndarray:
    """The gradient's projection on three random directions of 20."""
    tangents = np.linalg.qr(rng.normal(size=(repeats, GUESSES, len(ALONG), 3)))[0]
    return (tangents * tangents[..., :1, :]).sum(-1)


def one_of(points: np.ndarray) -> Draw:
    return lambda rng, repeats: points[rng.integers(len(points), size=(repeats, GUESSES))]


TWO_OF_FOUR = np.array([ROWS[list(pair)].mean(0) for pair in combinations(range(4), 2)])
# name → gradient, draws, variance. In two units signs leave one number of noise: ĝ = (g₁ + ηg₂, g₂ + ηg₁), η = ±1.
HARD: dict[str, tuple[np.ndarray, Draw, float]] = {
    "a step short against the gradient": (ALONG, lambda *a: 0.005 * along_random_directions(*a), 0.005**2 * 21),
    "a projection on three tangents": (ALONG, projected, 3 / 20 - (3 / 20) ** 2),
    "one row of two": (ROWS[:2].mean(0), one_of(ROWS[:2]), float(((ROWS[0] - ROWS[1]) ** 2).sum() / 4)),
    "two rows of four": (ROWS.mean(0), one_of(TWO_OF_FOUR), float(((TWO_OF_FOUR - ROWS.mean(0)) ** 2).sum(1).mean())),
    "signs in two units": (np.array([1.0, 0.3]), one_of(np.array([[1.3, 1.3], [0.7, -0.7]])), 0.3**2 + 1),
    "one row of two, short": (ROWS[:2].mean(0), one_of(0.01 * ROWS[:2]), 1e-4 * ((ROWS[0] - ROWS[1]) ** 2).sum() / 4),
}


@pytest.mark.parametrize("name", HARD)
def test_the_interval_of_a_variance_covers_where_squared_errors_tell_little_of_it(name: str) -> None:
    """Mostly of the bias, or hardly anything as they do not vary. 1000 repeats know a coverage to .007."""
    gradient, draw, variance = HARD[name]
    found = Sample(draw(np.random.default_rng(0), 1000), gradient, 16).quantities()
    estimate = found["variance"]
    assert estimate.value.mean() == pytest.approx(variance, rel=4 * estimate.value.std() / variance / 1000**0.5 + 1e-12)
    share, said = covered(estimate, variance), np.mean(estimate.wide)
    assert share > HELD[0] - 2 * 0.007
    assert share < HELD[1] + 2 * 0.007 or said > 0.5


def test_what_the_errors_of_a_variance_are_about_does_not_change_it() -> None:
    """Nor its interval, where the guess is no shorter than the gradient by more than noise."""
    sample, _ = simulated(np.random.default_rng(4), 512, 32, repeats=50)
    p, q, gram, of_guess, squared, _ = sample.arrays()
    found = []
    for scale in (1.0, 0.8, 0.3):
        errors, moved = about_scaled_gradient(np.full(50, scale), p, q, gram, of_guess, squared)
        law = squared_norm(moved, np.full(32, 16.0))
        found.append(less_squared_bias(errors, law, moved, of_guess))
    for other in found[1:]:
        np.testing.assert_allclose(other.value, found[0].value, rtol=1e-9)
        np.testing.assert_allclose(other.low, found[0].low, rtol=0.02)


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


def test_a_direction_in_many_dimensions_is_no_number_beyond_its_range() -> None:
    """Weight perturbation of 10⁵ weights at 256 guesses: tan² is 0 ± 2, and x/(1 + x) was anything.

    The group means across the gradient are normal given the slopes t, m_a = s_a w_a with s_a² = Σt²/n², so the Gram
    matrix of the w_a is that of a Wishart law, drawn after Bartlett. 500 repeats know a coverage to .01.
    """
    rng, dimension, groups, repeats = np.random.default_rng(0), 10**5 - 1, 16, 500
    slopes = rng.normal(size=(repeats, groups, GUESSES // groups))
    lower = np.tril(rng.normal(size=(repeats, groups, groups)), -1)
    lower += np.sqrt(rng.chisquare(dimension - np.arange(groups), size=(repeats, groups)))[..., None] * np.eye(groups)
    spread = np.sqrt((slopes**2).sum(-1)) / slopes.shape[-1]
    across = spread[..., :, None] * (lower @ lower.mT) * spread[..., None, :]
    products = slopes**2
    along = products.mean(-1) - 1
    gram = across + along[..., :, None] * along[..., None, :]
    lengths = products * (products + dimension)
    flat = (part.reshape(repeats, GUESSES) for part in (products, lengths))
    found = quantities.quantities(*flat, gram, np.arange(GUESSES) // (GUESSES // groups), np.ones(repeats))
    estimate = found["directional_bias"]
    known = ~np.isnan(estimate.value)
    assert known.mean() > 0.9
    value, width = estimate.value[known], (estimate.high - estimate.low)[known]
    assert ((value >= 0) & (value <= 1)).all() and (estimate.se[known] <= 0.5).all()
    assert np.asarray(estimate.wide)[known][width > 0.9].all()
    assert ((estimate.low <= 0) | ~known).mean() > 0.92
    # The map is the one that it was wherever the squared tangent is no negative number.
    sure, _ = simulated(np.random.default_rng(0), 1024, 64)
    sure = Sample(sure.guesses + 0.7 * np.eye(12)[3], sure.gradient, 64)
    p, _, gram, of_guess, squared, _ = sure.arrays()
    tangent = squared_tangent(gram, np.full(64, 16.0), p, of_guess, squared).value
    np.testing.assert_allclose(sure.quantities()["directional_bias"].value, tangent / (1 + tangent), rtol=1e-12)
