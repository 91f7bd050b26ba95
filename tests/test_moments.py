import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fganalysis import moments


def brute_force(gram: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """U and the mean of K_ab K_cd over four different groups, by loops."""
    groups = range(len(weights))
    pairs = [(a, b) for a in groups for b in groups if a != b]
    value = sum(weights[a] * weights[b] * gram[a, b] for a, b in pairs) / sum(weights[a] * weights[b] for a, b in pairs)
    quads = [(a, b, c, d) for (a, b), (c, d) in itertools.product(pairs, pairs) if len({a, b, c, d}) == 4]
    weight = [weights[a] * weights[b] * weights[c] * weights[d] for a, b, c, d in quads]
    four = sum(w * gram[a, b] * gram[c, d] for w, (a, b, c, d) in zip(weight, quads, strict=True)) / sum(weight)
    return value, value**2 - four


@given(seed=st.integers(0, 10_000), groups=st.integers(4, 6))
@settings(max_examples=20, deadline=None)
def test_pair_mean_equals_loops(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(groups, 7)) + 2.0  # A clear bias, so that the unbiased variance is the larger one.
    gram, weights = errors @ errors.T, rng.integers(1, 4, groups).astype(float)
    estimate = moments.pair_mean(gram, weights)
    value, variance = brute_force(gram, weights)
    np.testing.assert_allclose(estimate.value, value, rtol=1e-10)
    widened = float(estimate.se) / moments.student_widening(groups - 1)
    assert widened**2 >= variance - 1e-9 * abs(value) ** 2


@pytest.mark.parametrize("bias", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dimension", [1, 200])
def test_squared_bias_is_unbiased_and_its_interval_covers(bias: float, dimension: int) -> None:
    # 4000 repeats: the coverage's own error is .0034, so that 93.5 to 96.5 % lies 4 errors around 95 %.
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(4000, 64, dimension)) + bias / np.sqrt(dimension)
    estimate = moments.pair_mean(errors @ errors.transpose(0, 2, 1), np.ones(64))
    error = estimate.value.std() / np.sqrt(4000)
    assert abs(estimate.value.mean() - bias**2) <= 4 * error
    covered = np.abs(estimate.value - bias**2) <= moments.Z95 * estimate.se
    assert covered.mean() >= 0.935
    if dimension > 1:  # In one dimension the error estimate grows with the estimate: at zero bias it is wide.
        assert covered.mean() <= 0.975
    rooted = moments.root(estimate)
    covered_root = np.abs(rooted.value - bias) <= moments.Z95 * rooted.se * (1 + 1e-12)
    assert covered_root.mean() >= covered.mean() - 1e-9


@pytest.mark.parametrize("dimension", [200, 40_000])
def test_the_error_of_the_squared_bias_is_that_of_many_dimensions(dimension: int) -> None:
    # Centring the Gram matrix with its diagonal made the error 1.2 and 3.3 times too wide here.
    rng = np.random.default_rng(4)
    found = []
    for _ in range(60):
        errors = rng.normal(size=(64, dimension)).astype(np.float32)
        found.append(moments.pair_mean((errors @ errors.T).astype(float), np.ones(64)))
    spread = np.std([estimate.value for estimate in found])
    # 60 repeats know a standard deviation to 9 %.
    assert 0.7 < np.mean([estimate.se for estimate in found]) / spread < 1.4


def test_the_naive_squared_norm_of_the_mean_would_be_caught() -> None:
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(2000, 64, 200))
    naive = (errors.mean(1) ** 2).sum(-1)
    assert naive.mean() > 20 * naive.std() / np.sqrt(2000)


def simulated(rng: np.random.Generator, n_guesses: int, groups: int, scale: float = 1.0) -> tuple:
    """Guesses ĝ = 0.8 g + noise in 12 dimensions, and the truth of every quantity."""
    dimension = 12
    gradient = np.zeros(dimension)
    gradient[0] = 2.0 * scale
    guesses = 0.8 * gradient + rng.normal(size=(n_guesses, dimension)) * scale
    group_of_guess = np.arange(n_guesses) % groups
    means = np.stack([guesses[group_of_guess == a].mean(0) for a in range(groups)]) - gradient
    arrays = (guesses @ gradient, (guesses**2).sum(1), means @ means.T, group_of_guess, np.array((gradient**2).sum()))
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
    return arrays, truth


def test_every_interval_covers_its_truth() -> None:
    rng = np.random.default_rng(1)
    covered: dict[str, list[bool]] = {}
    for _ in range(1500):
        arrays, truth = simulated(rng, 512, 32)
        for name, estimate in moments.quantities(*arrays).items():
            if name in truth:
                covered.setdefault(name, []).append(abs(estimate.value - truth[name]) <= moments.Z95 * estimate.se)
    for name, hits in covered.items():
        # 1500 repeats: an error of .0056. Bias and directional bias at their boundary may be wide, never tight.
        assert np.mean(hits) >= 0.95 - 4 * 0.0056, (name, np.mean(hits))


@given(seed=st.integers(0, 1000), exponent=st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_quantities_scale_as_their_units_say(seed: int, exponent: float) -> None:
    scale = 10**exponent
    one, _ = simulated(np.random.default_rng(seed), 64, 8)
    other, _ = simulated(np.random.default_rng(seed), 64, 8, scale)
    powers = {"bias": 1, "squared_bias": 2, "variance": 2, "mse": 2}
    for name, estimate in moments.quantities(*one).items():
        expected = estimate.value * scale ** powers.get(name, 0)
        np.testing.assert_allclose(moments.quantities(*other)[name].value, expected, rtol=1e-7, atol=1e-12)


def test_mse_is_squared_bias_plus_variance() -> None:
    arrays, _ = simulated(np.random.default_rng(2), 256, 16)
    found = moments.quantities(*arrays)
    np.testing.assert_allclose(found["mse"].value, found["squared_bias"].value + found["variance"].value, rtol=1e-12)


def test_too_few_groups_give_no_interval_and_no_bias() -> None:
    arrays, _ = simulated(np.random.default_rng(2), 6, 3)
    found = moments.quantities(*arrays)
    for name in ("squared_bias", "bias", "variance", "directional_bias"):
        assert np.isnan(found[name].value) and np.isnan(found[name].se)
    assert np.isfinite(found["mse"].se)


def test_a_zero_gradient_gives_nan_where_a_ratio_to_it_is_asked() -> None:
    (p, q, gram, groups, _), _ = simulated(np.random.default_rng(3), 64, 8)
    found = moments.quantities(0 * p, q, gram, groups, np.array(0.0))
    for name in ("relative_bias", "shrinkage", "cosine", "efficiency"):
        assert np.isnan(found[name].value), name
    assert np.isfinite(found["bias"].value)


def test_a_proportion_at_its_end_has_an_error() -> None:
    estimate = moments.proportion(np.array(100.0), 100)
    assert estimate.value == 1.0 and 0.005 < estimate.se < 0.05
