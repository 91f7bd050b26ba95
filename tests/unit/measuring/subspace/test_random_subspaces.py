"""What random subspaces give, against the beta law and against drawn ones."""

import numpy as np
import pytest
from scipy import stats

from fganalysis.measuring import subspace


def test_random_overlap_is_the_beta_law() -> None:
    k = np.arange(1, 12)
    baseline = subspace.random_overlap(k, 12)
    law = stats.beta(k / 2, (12 - k) / 2)
    np.testing.assert_allclose(baseline.mean, law.mean(), rtol=1e-12)
    np.testing.assert_allclose(baseline.spread, law.std(), rtol=1e-12)
    np.testing.assert_allclose(subspace.random_overlap(12, 12).mean, 1)
    np.testing.assert_allclose(subspace.random_overlap(12, 12).spread, 0)


@pytest.mark.parametrize(("k", "other_k", "unit"), [(3, 2, 7), (5, 5, 8), (1, 4, 6), (2, 2, 20)])
def test_random_alignment_is_that_of_drawn_subspaces(k: int, other_k: int, unit: int) -> None:
    # 20 000 draws: the mean is good to 0.7 % of the spread, the variance to about 1.5 %; 4 such errors are allowed.
    rng = np.random.default_rng(10)
    drawn = np.linalg.qr(rng.normal(size=(20_000, unit, k)))[0]
    aligned = np.square(drawn[:, :other_k]).sum((1, 2)) / min(k, other_k)
    baseline = subspace.random_alignment(k, other_k, unit)
    assert abs(aligned.mean() - baseline.mean) <= 4 * baseline.spread / np.sqrt(20_000)
    fourth = np.mean((aligned - aligned.mean()) ** 4)
    error = np.sqrt((fourth - aligned.var() ** 2) / 20_000)
    assert abs(aligned.var() - baseline.spread**2) <= 4 * error
    # A negative control: independent directions, each with its own Beta law, would spread more or less.
    naive = min(k, other_k) * subspace.random_overlap(max(k, other_k), unit).spread ** 2 / min(k, other_k) ** 2
    assert min(k, other_k) == 1 or abs(aligned.var() - naive) > 4 * error


def test_random_alignment_has_the_symmetries_of_projectors() -> None:
    for k, other_k in ((2, 5), (3, 3), (8, 4)):
        one = subspace.random_alignment(k, other_k, 9)
        other = subspace.random_alignment(9 - k, other_k, 9)
        n_angles, n_others = min(k, other_k), min(9 - k, other_k)
        np.testing.assert_allclose(one.mean * n_angles, other_k - other.mean * n_others, rtol=1e-12)
        np.testing.assert_allclose(one.spread * n_angles, other.spread * n_others, rtol=1e-12)
        np.testing.assert_allclose(subspace.random_alignment(other_k, k, 9).spread, one.spread, rtol=1e-12)
    circle = subspace.random_alignment(1, 1, 2)  # cos² of a uniform angle: mean ½, variance ⅛
    np.testing.assert_allclose([circle.mean, circle.spread**2], [0.5, 0.125], rtol=1e-12)
    np.testing.assert_array_equal(
        [subspace.random_alignment(1, 1, 1).mean, subspace.random_alignment(0, 3, 5).mean], [1, 0]
    )
    with pytest.raises(ValueError, match="k must be a whole number from 0 to 5, got 6"):
        subspace.random_overlap(6, 5)
    with pytest.raises(ValueError, match="k must lie between 0 and unit = 5, got 1 to 6"):
        subspace.random_overlap(np.array([1, 6]), 5)


@pytest.mark.parametrize("shape", [(64, 64), (40, 120), (128, 96)])
@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_random_srank_is_that_of_drawn_matrices(shape: tuple[int, int], delta: float) -> None:
    """Of Gaussian and of uniform entries, whose law does not matter; counting modes adds half a mode on average."""
    rng = np.random.default_rng(3)
    expected = subspace.random_srank(*shape, delta)
    for draw in (rng.normal, lambda size: rng.uniform(-0.1, 0.1, size)):
        drawn = subspace.srank(subspace.singular_values(draw(size=(40, *shape))), delta)
        assert abs(drawn.mean() - 0.5 - expected) < 0.6
    assert subspace.random_srank(*shape[::-1], delta) == expected
    smaller = min(shape)
    np.testing.assert_allclose(subspace.random_srank(*shape, 0.0), smaller, rtol=1e-12)
    # Equal singular values, in the limit of long matrices.
    np.testing.assert_allclose(subspace.random_srank(4, 10**9, delta), 4 * (1 - delta), rtol=1e-4)
