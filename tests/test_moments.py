import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fganalysis import moments


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
    """1500 repeats know a coverage to .0056; `studies.calibration` counts over real guesses."""
    rng = np.random.default_rng(1)
    held: dict[str, list[bool]] = {}
    for _ in range(1500):
        arrays, truth = simulated(rng, 512, 32)
        for name, estimate in moments.quantities(*arrays).items():
            if name in truth:
                held.setdefault(name, []).append(bool(estimate.low <= truth[name] <= estimate.high))
    assert set(held) == set(simulated(rng, 8, 4)[1])
    for name, hits in held.items():
        assert abs(np.mean(hits) - 0.95) <= 3 * 0.0056, (name, np.mean(hits))


@given(seed=st.integers(0, 1000), exponent=st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_quantities_scale_as_their_units_say(seed: int, exponent: float) -> None:
    scale = 10**exponent
    one, _ = simulated(np.random.default_rng(seed), 64, 8)
    other, _ = simulated(np.random.default_rng(seed), 64, 8, scale)
    powers = {"bias": 1, "squared_bias": 2, "variance": 2, "mse": 2}
    for name, estimate in moments.quantities(*one).items():
        expected = estimate.value * scale ** powers.get(name, 0)
        rescaled = moments.quantities(*other)[name]
        np.testing.assert_allclose(rescaled.value, expected, rtol=1e-7, atol=1e-12)
        bounds = np.array([estimate.low, estimate.high]) * scale ** powers.get(name, 0)
        np.testing.assert_allclose([rescaled.low, rescaled.high], bounds, rtol=1e-5, atol=1e-9 * np.abs(bounds).max())


def test_mse_is_squared_bias_plus_variance() -> None:
    arrays, _ = simulated(np.random.default_rng(2), 256, 16)
    found = moments.quantities(*arrays)
    np.testing.assert_allclose(found["mse"].value, found["squared_bias"].value + found["variance"].value, rtol=1e-12)


def test_too_few_groups_give_no_interval_and_no_bias() -> None:
    arrays, _ = simulated(np.random.default_rng(2), 6, 3)
    found = moments.quantities(*arrays)
    for name in ("squared_bias", "bias", "variance", "directional_bias"):
        assert np.isnan(found[name].value) and np.isnan(found[name].se)
    assert np.isfinite(found["mse"].value) and np.isnan(found["mse"].se)  # Six guesses are too few for any interval.


def test_a_zero_gradient_gives_nan_where_a_ratio_to_it_is_asked() -> None:
    (p, q, gram, groups, _), _ = simulated(np.random.default_rng(3), 64, 8)
    found = moments.quantities(0 * p, q, gram, groups, np.array(0.0))
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
    found = moments._efficiency(products, np.stack([np.ones(n), np.ones(n), lengths]), np.ones(3))
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
        found = moments.quantities(products, lengths, means @ means.mT, of_guess, np.ones((3, 200)))
        names = ("squared_bias", "bias", "relative_bias", "directional_bias")
        flagged.append([float(np.mean(found[name].wide)) for name in names])
    assert not any(flagged[0]) and max(flagged[1]) > 0


def test_the_seed_papers_variance_says_where_its_interval_is_wide() -> None:
    """Where six groups more, as noisy as the noisiest, would raise it by more than the groups show."""
    generator = np.random.default_rng(0)
    second, error = 1 + 0.1 * generator.normal(size=(64, 5)), 1e-3 * generator.normal(size=(64, 5))
    noisy = second + np.where(np.arange(64) == 0, 0.25, 0.0)[:, None]
    for squares, wide in ((second, False), (noisy, True)):
        assert bool(moments.wang2025(squares, error, np.full(64, 16.0))["wang2025_variance"].wide) == wide
    few = moments.wang2025(second, error, np.full(64, 2.0))
    assert all(bool(np.all(estimate.wide)) for estimate in few.values())


def test_the_error_of_an_efficiency_near_zero_is_no_accident_of_its_own_value() -> None:
    """The delta method's 2ρ se is zero where ρ happens to be: a quarter of these errors would be under half of theirs.

    2000 samples of 512 guesses, of none to one standard error along the gradient; an efficiency's spread to 5 %.
    """
    generator = np.random.default_rng(0)
    for along in (0.0, 0.5, 1.0):
        products = generator.normal(along / 512**0.5, size=(2000, 512))
        found = moments._efficiency(products, np.ones_like(products), np.ones(2000))
        assert np.quantile(found.se, 0.05) > 0.5 * found.value.std()
        assert 0.6 < np.median(found.se) / found.value.std() < 1.2
        assert (np.abs(found.value - along**2 / 512) > 1.96 * found.se).mean() < 0.05
