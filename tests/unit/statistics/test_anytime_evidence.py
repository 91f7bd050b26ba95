"""The evidence is a supermartingale, the bounds cover, and each stops holding when its formula is spoilt."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fganalysis.statistics import anytime_evidence
from fganalysis.statistics.anytime_evidence import Evidence, boundary, log_evidence, norm_bound, spent, spread_of_mean

RNG_SEED = 5


def evidence(total: float, squares: float) -> float:
    return float(np.exp(log_evidence(np.array(total), np.array(squares))))


def test_evidence_is_the_mixture_over_normal_bets() -> None:
    bets = np.linspace(-8, 8, 200_001)
    for total, squares in ((0.0, 3.0), (4.0, 2.5), (-30.0, 150.0)):
        mixed = 0.0
        for variance in anytime_evidence.MIXTURE:
            scaled = bets * np.sqrt(variance)
            density = np.exp(-(bets**2) / 2) / np.sqrt(2 * np.pi)
            mixed += np.trapezoid(density * np.exp(scaled * total - scaled**2 * squares / 2), bets)
        assert evidence(total, squares) == pytest.approx(mixed / len(anytime_evidence.MIXTURE), rel=1e-6)
    assert evidence(0.0, 0.0) == 1.0


@given(total=st.floats(-1e3, 1e3), squares=st.floats(0, 1e5), size=st.floats(0, 1e3), share=st.floats(0.01, 1.0))
def test_a_symmetric_step_never_raises_the_mean(total: float, squares: float, size: float, share: float) -> None:
    """Exactly, for the steps of ± size, any share of them zero: every symmetric step is a mixture of these."""
    totals, after = np.array([total, total + size, total - size]), squares + size**2
    logs = log_evidence(totals, np.array([squares, after, after]))
    grown = np.exp(np.clip(logs - logs[0], -700, 700))
    assert (1 - share) * grown[0] + share * (grown[1] + grown[2]) / 2 <= 1 + 1e-9


def test_without_part_of_the_squares_it_would_not_be_a_supermartingale() -> None:
    before = evidence(0.0, 100.0)
    spoilt = sum(evidence(sign * 3.0, 100.0 + 0.8 * 3.0**2) for sign in (-1, 1)) / 2
    assert spoilt > before * (1 + 1e-6)


def test_the_best_stopping_rule_gains_nothing_on_ten_signs() -> None:
    """Optimal stopping by backward induction over all paths of ten steps of ± 3: the value of the game is 1."""
    value = {path: 0.0 for path in itertools.product((-1, 1), repeat=11)}
    for length in range(10, -1, -1):
        for path in itertools.product((-1, 1), repeat=length):
            now = evidence(3.0 * sum(path), 9.0 * length)
            later = (value[(*path, -1)] + value[(*path, 1)]) / 2
            value[path] = max(now, later)
    assert value[()] == pytest.approx(1.0, abs=1e-12)


def test_boundary_is_where_the_evidence_reaches_one_over_alpha() -> None:
    for squares, alpha in ((0.0, 0.05), (50.0, 0.01), (1e6, 1e-4)):
        assert evidence(boundary(squares, alpha), squares) == pytest.approx(1 / alpha, rel=1e-6)


@pytest.mark.parametrize("law", ["normal", "skewed", "cauchy"])
def test_false_alarms_stay_below_alpha_under_optional_stopping(law: str) -> None:
    """2000 runs of 600 looks, each stopped at its largest evidence; exact for the symmetric laws, tails or none."""
    rng, n_runs, alpha = np.random.default_rng(RNG_SEED), 2000, 0.05
    total, squares, largest = np.zeros(n_runs), np.zeros(n_runs), np.zeros(n_runs)
    for _ in range(600):
        if law == "normal":
            step = rng.standard_normal(n_runs) * 4
        elif law == "cauchy":
            step = rng.standard_cauchy(n_runs)
        else:
            step = rng.chisquare(16, n_runs) - 16  # blocks of 16 squares of normals: a guess along its gradient
        total, squares = total + step, squares + step**2
        largest = np.maximum(largest, log_evidence(total, squares))
    assert (largest >= np.log(1 / alpha)).mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / n_runs)


def test_evidence_finds_a_shift_and_bounds_it_from_below() -> None:
    """A shift of .1 standard deviations takes about 30/.1² steps, as the docstring of `checking` says of α = .01."""
    rng, needed = np.random.default_rng(RNG_SEED), []
    for _ in range(40):
        steps = rng.standard_normal(20_000) + 0.1
        total, squares = steps.cumsum(), (steps**2).cumsum()
        crossed = log_evidence(total, squares) + np.log(1 / 8) >= np.log(1 / 0.01)  # one of eight directions
        needed.append(int(crossed.argmax()))
        seen = Evidence.none(np.log(np.array([1 / 8])))
        for step in steps[: needed[-1] + 1, None]:
            seen.add(step)
        seen.reach += needed[-1] + 1.0
        least = seen.least_bias(0.01)
        assert 0 <= least < 0.1
        assert seen.log(least * 1.001) < np.log(100) <= seen.log(least * 0.999)
    assert 15 / 0.1**2 < np.median(needed) < 45 / 0.1**2


def test_least_bias_is_zero_without_evidence_and_factor_needed_extrapolates() -> None:
    seen = Evidence.none(np.log(np.array([0.5, 0.5])))
    for _ in range(400):
        seen.add(np.array([0.1, 0.0]))
    seen.reach += 400.0
    seen.squares[:] = 400.0
    assert seen.least_bias(0.01) == 0.0
    factor = seen.factor_needed(0.01)
    more = Evidence(seen.log_weights, seen.total * factor, seen.squares * factor, seen.reach * factor)
    assert more.log() == pytest.approx(np.log(100), abs=2.0)
    assert Evidence.none(np.zeros(3)).factor_needed(0.01) == np.inf


@pytest.mark.parametrize("dimensions", [1, 10, 1000, 40_000])
def test_spread_of_the_mean_is_right_in_any_number_of_dimensions(dimensions: int) -> None:
    """‖C‖_F of the mean of 64 standard normal groups is √d/64, its square estimated without bias; the bound holds."""
    rng, n_repeats = np.random.default_rng(RNG_SEED), 100 if dimensions < 10_000 else 4
    seconds, tops = [], []
    for _ in range(n_repeats):
        groups = rng.standard_normal((64, dimensions)) + 1.0
        frobenius, top = spread_of_mean(groups @ groups.T)
        seconds.append(64**2 * frobenius**2 / dimensions)
        tops.append(64 * top)
        assert top <= frobenius
    tolerance = 4 * np.std(seconds, ddof=1) / np.sqrt(n_repeats)
    assert np.mean(seconds) == pytest.approx(1, abs=tolerance)
    assert tolerance < 0.3
    assert np.mean(tops) > 0.9


@pytest.mark.parametrize("dimensions", [1, 10, 300])
def test_norm_bound_covers_a_bias_along_the_noisiest_direction(dimensions: int) -> None:
    """1000 repeats at alpha .05, the bias as large as the bound's resolution, one direction 3 times as noisy."""
    rng, alpha, misses = np.random.default_rng(RNG_SEED), 0.05, 0
    deviations = np.ones(dimensions)
    deviations[0] = 3.0
    bias = np.zeros(dimensions)
    bias[0] = (np.sum(deviations**4)) ** 0.25 / 8
    for _ in range(1000):
        groups = rng.standard_normal((64, dimensions)) * deviations + bias
        misses += norm_bound(groups @ groups.T, alpha).upper < bias[0]
    assert misses / 1000 <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 1000)


def test_the_bound_without_its_linear_term_would_not_cover() -> None:
    """In one dimension the noise along the bias is all there is: U + w alone misses a clear bias half of the time."""
    rng, misses = np.random.default_rng(RNG_SEED), 0
    for _ in range(300):
        groups = rng.standard_normal((64, 1)) + 2.0
        bound = norm_bound(groups @ groups.T, 0.05)
        misses += np.sqrt(bound.squared + bound.across) < 2.0
    assert misses / 300 > 0.1


def test_norm_bound_shrinks_as_its_factor_says() -> None:
    groups = np.random.default_rng(RNG_SEED).standard_normal((64, 5))
    bound = norm_bound(groups @ groups.T, 0.01)
    factor = bound.factor_needed(0.1)
    along, across = bound.along / factor, bound.across / factor
    left = np.sqrt(along) + np.sqrt(along + across + max(bound.squared - bound.across, 0.0))
    assert left == pytest.approx(0.1)
    assert norm_bound(np.ones((64, 64)), 0.01).factor_needed(0.9) == np.inf


def test_norm_bound_refuses_too_few_groups() -> None:
    with pytest.raises(ValueError, match="a bound takes at least 8 groups, got 7"):
        norm_bound(np.eye(7), 0.05)


def test_the_looks_spend_alpha_and_no_more() -> None:
    assert sum(spent(0.05, look) for look in range(1, 10_000)) == pytest.approx(0.05, rel=2e-4)
