"""Singular values and vectors against SciPy and matrices of a known spectrum, over the whole range of a double."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fganalysis.measuring import gradient_stream, subspace
from tests.unit.measuring.subspace.matrices import RANK_MEASURES, Floats, orthonormal, seeds, with_spectrum


@pytest.mark.parametrize("shape", [(7, 7), (30, 8), (8, 30), (1, 5), (5, 1), (4, 6, 9)])
def test_singular_values_and_modes_equal_scipys(shape: tuple[int, ...]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    flat = matrix.reshape(-1, *shape[-2:])
    expected = np.stack([scipy.linalg.svdvals(one) for one in flat]).reshape(*shape[:-2], -1)
    np.testing.assert_allclose(subspace.singular_values(matrix), expected, rtol=1e-8)
    found = subspace.modes(matrix)
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)
    length = np.linalg.norm(matrix @ found.vectors, axis=-2)
    np.testing.assert_allclose(length, expected, rtol=1e-8)
    gram = found.vectors.swapaxes(-1, -2) @ found.vectors
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(gram.shape[-1]), gram.shape), atol=1e-12)


def test_known_spectrum_gives_its_modes_and_ranks() -> None:
    values = np.array([3.0, 2.0, 1.0, 0.5])
    matrix, right = with_spectrum(np.random.default_rng(1), 20, 10, values)
    found = subspace.modes(matrix)
    np.testing.assert_allclose(found.values[:4], values, rtol=1e-12)
    np.testing.assert_array_equal(found.values[4:], 0)
    np.testing.assert_array_equal(found.vectors[:, 4:], 0)
    assert found.rank == 4
    np.testing.assert_allclose(np.abs(np.sum(found.vectors[:, :4] * right, axis=0)), 1, rtol=1e-12)
    energy = values**2 / np.sum(values**2)
    np.testing.assert_allclose(subspace.energy_curve(values), np.cumsum(energy), rtol=1e-12)
    np.testing.assert_allclose(subspace.stable_rank(values), np.sum(matrix**2) / np.linalg.norm(matrix, 2) ** 2)
    np.testing.assert_allclose(subspace.entropy_rank(values), np.exp(stats.entropy(energy)), rtol=1e-12)
    np.testing.assert_allclose(subspace.participation_ratio(values), 1 / np.sum(energy**2), rtol=1e-12)


def test_leading_directions_are_refused_where_they_are_not_determined() -> None:
    matrix, right = with_spectrum(np.random.default_rng(2), 9, 6, np.array([3.0, 2.0, 2.0, 1.0]))
    found = subspace.modes(matrix)
    for k in (1, 3, 4):
        angles = subspace.principal_angles(found.leading(k), np.ascontiguousarray(right[:, :k]))
        np.testing.assert_allclose(angles, 0, atol=1e-12)
    with pytest.raises(ValueError, match="singular values 2 and 3 are equal, so 2 leading directions are undetermined"):
        found.leading(2)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k must be between 1 and 4, the smallest rank, got {k}"):
            found.leading(k)


def test_numbers_of_single_precision_count_their_own_rounding_as_zero() -> None:
    rng = np.random.default_rng(3)
    matrix = (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 30))).astype(np.float32)
    assert subspace.modes(matrix).rank == 3
    assert subspace.modes(matrix.astype(np.float64)).rank > 3  # the rounding itself has full rank
    assert subspace.singular_values(matrix).dtype == np.float64


def relative_numbers(matrix: Floats, gradient: Floats, size: float) -> dict[str, Any]:
    """Every number that scale must not change, singular values and bounds in units of ``size``."""
    found = subspace.modes(matrix)
    fixed = orthonormal(np.random.default_rng(0), matrix.shape[1], 3)
    stream = gradient_stream.StreamingSubspace.of(matrix[:9]).add(matrix[9:])
    incremental = gradient_stream.IncrementalSubspace.of(matrix[:9], rank=3).add(matrix[9:])
    randomised = subspace.randomised_modes(matrix, 3, seed=0, oversampling=1, power_iterations=0)
    numbers: dict[str, Any] = {"singular_values": subspace.singular_values(matrix) / size}
    for name, one in (("batch", found), ("stream", stream.modes()), ("incremental", incremental.modes())):
        numbers[f"{name} values"], numbers[f"{name} rank"] = one.values / size, one.rank
        numbers[f"{name} overlap"] = subspace.overlap_curve(gradient, one)
        numbers[f"{name} angles"] = subspace.principal_angles(one.leading(2), fixed)
        numbers[f"{name} energy"] = subspace.energy_curve(one.values)
        numbers[f"{name} modes"] = subspace.modes_for_energy(one.values)
        for measure in RANK_MEASURES:
            numbers[f"{name} {measure.__name__}"] = measure(one.values)
    numbers["lost"] = np.array([incremental.remainder, incremental.lost]) / size
    numbers["randomised"] = np.array([*randomised.modes.values, *randomised.error, randomised.remainder]) / size
    return numbers


@given(seed=seeds, digits=st.integers(-150, 150), single=st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_relative_number_depends_on_scale(seed: int, digits: int, single: bool) -> None:
    """Over 10^±25 in single precision and 10^±150 in double, whose squares leave the range of their type."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** (digits / 6 if single else digits)
    matrix = with_spectrum(rng, 20, 8, np.array([5.0, 3.0, 2.0, 1.0, 0.5, 0.1]))[0]
    gradient = rng.normal(size=8)
    kind = np.float32 if single else np.float64
    small, large = (relative_numbers((matrix * s).astype(kind), (gradient * s).astype(kind), s) for s in (1.0, size))
    for name, expected in small.items():
        slack = 1e-5 if single else 1e-9
        np.testing.assert_allclose(large[name], expected, rtol=slack, atol=slack, err_msg=name, equal_nan=True)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e307])
def test_the_ends_of_the_range_of_a_double(size: float) -> None:
    matrix = size * np.diag([16.0, 8.0, 1.0])
    expected = size * np.array([16.0, 8.0, 1.0])
    streams = [
        gradient_stream.StreamingSubspace.of(matrix),
        gradient_stream.IncrementalSubspace.of(matrix, 3),
    ]
    np.testing.assert_allclose(subspace.singular_values(matrix), expected)
    for found in (subspace.modes(matrix), *(stream.modes() for stream in streams)):
        np.testing.assert_allclose(found.values, expected)
        np.testing.assert_allclose(subspace.overlap_curve(matrix[0], found), 1)
        np.testing.assert_allclose(subspace.stable_rank(found.values), 321 / 256)
    with pytest.raises(ValueError, match="singular values leave the range of a double: divide"):
        subspace.singular_values(np.full((4, 4), 1e308))


def test_arrays_that_cannot_be_written_or_run_backwards_are_taken() -> None:
    matrix = np.random.default_rng(16).normal(size=(4, 3))
    frozen = matrix[::-1, ::-1]
    frozen.flags.writeable = False
    np.testing.assert_allclose(subspace.singular_values(frozen), subspace.singular_values(matrix), rtol=1e-12)
