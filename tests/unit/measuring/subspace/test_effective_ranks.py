"""Effective ranks and shares of energy of spectra whose answer is known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fganalysis.measuring import subspace
from tests.unit.measuring.subspace.matrices import RANK_MEASURES, Floats, orthonormal, seeds


@pytest.mark.parametrize("measure", RANK_MEASURES)
def test_equal_modes_count_in_full_and_one_mode_counts_once(measure: Callable[[Floats], Floats]) -> None:
    np.testing.assert_allclose(measure(np.ones(6)), 6)
    np.testing.assert_allclose(measure(np.array([2.0, 0, 0])), 1)
    # Tiny and huge values, whose squares leave the range of a double.
    np.testing.assert_allclose(measure(np.array([[1e-200, 1e-200], [1e200, 1e200]])), 2)


def test_the_share_of_singular_values_is_another_effective_rank() -> None:
    values = np.array([3.0, 1.0])
    roy_vetterli = np.exp(stats.entropy(values))
    assert abs(subspace.entropy_rank(values) - roy_vetterli) > 0.3


def test_modes_for_energy() -> None:
    values = np.array([[1.0] * 10, [3.0, 1.0] + [0.0] * 8, [0.0] * 10])
    np.testing.assert_array_equal(subspace.modes_for_energy(values, 0.9), [9, 1, 0])
    np.testing.assert_array_equal(subspace.modes_for_energy(values, 0.95), [10, 2, 0])
    np.testing.assert_array_equal(subspace.modes_for_energy(values, 1.0), [10, 2, 0])
    for share in (0.0, 1.01, np.nan):
        with pytest.raises(ValueError, match=f"share must be a finite number above 0 and at most 1, got {share}"):
            subspace.modes_for_energy(values, share)


def test_srank_adds_singular_values_and_not_their_squares() -> None:
    values = np.array([[1.0] * 10, [3.0, 1.0] + [0.0] * 8, [98.0, 1.0, 0.5, 0.5] + [0.0] * 6, [0.0] * 10])
    np.testing.assert_array_equal(subspace.srank(values), [10, 2, 2, 0])
    np.testing.assert_array_equal(subspace.srank(values, 0.1), [9, 2, 1, 0])
    np.testing.assert_array_equal(subspace.srank(values, 0.0), [10, 2, 4, 0])
    assert subspace.modes_for_energy(values, 0.99)[2] == 1  # Squares hide the tail.
    np.testing.assert_array_equal(subspace.srank(np.array([[1e-300, 1e-300], [1e300, 1e300]])), 2)
    for delta in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match=f"delta must be a finite number .* got {delta}"):
            subspace.srank(values, delta)
    with pytest.raises(ValueError, match="singular values must be in descending order"):
        subspace.srank(np.array([1.0, 2.0]))


@pytest.mark.parametrize("measure", [*RANK_MEASURES, subspace.energy_curve])
def test_a_zero_spectrum_has_no_ranks(measure: Callable[[Floats], Floats]) -> None:
    found = subspace.modes(np.zeros((2, 4, 3)))
    np.testing.assert_array_equal(found.rank, [0, 0])
    assert np.isnan(measure(found.values)).all()


@given(seed=seeds, scale=st.floats(1e-12, 1e12))
@settings(max_examples=25)
def test_spectra_do_not_see_rotation_and_ranks_do_not_see_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(6, 5))
    turned = scale * orthonormal(rng, 6, 6) @ matrix @ orthonormal(rng, 5, 5)
    values, turned_values = subspace.singular_values(matrix), subspace.singular_values(turned)
    np.testing.assert_allclose(turned_values, scale * values, rtol=1e-9, atol=1e-13 * scale * values[0])
    for measure in (*RANK_MEASURES, subspace.energy_curve):
        np.testing.assert_allclose(measure(turned_values), measure(values), rtol=1e-9)
