"""Overlaps and principal angles against projections, SciPy and bases at known angles."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from fganalysis.measuring import subspace
from tests.unit.measuring.subspace.matrices import Floats, orthonormal, seeds


def rotated_by(rng: np.random.Generator, basis: Floats, angles: Floats) -> Floats:
    """A basis at the given principal angles to ``basis``, its columns mixed."""
    unit, k = basis.shape
    beside = np.linalg.qr(np.hstack([basis, rng.normal(size=(unit, k))]))[0][:, k:]
    return (basis * np.cos(angles) + beside * np.sin(angles)) @ orthonormal(rng, k, k)


def test_overlap_curve_equals_projections() -> None:
    rng = np.random.default_rng(4)
    gradient, basis = rng.normal(size=(3, 5, 8)), np.stack([orthonormal(rng, 8, 6) for _ in range(5)])
    curve = subspace.overlap_curve(gradient, basis)
    assert curve.shape == (3, 5, 6)
    for step in range(3):
        for example in range(5):
            one = gradient[step, example]
            for k in range(1, 7):
                projected = basis[example][:, :k] @ basis[example][:, :k].T @ one
                expected = projected @ projected / (one @ one)
                np.testing.assert_allclose(curve[step, example, k - 1], expected, rtol=1e-8)
    # One basis for all examples.
    shared = subspace.overlap_curve(gradient, basis[2])
    np.testing.assert_allclose(shared[:, 2], curve[:, 2], rtol=1e-12)
    # Columns beyond the rank are zero: the curve stays where it is.
    padded = np.concatenate([basis, np.zeros((5, 8, 2))], axis=-1)
    np.testing.assert_array_equal(subspace.overlap_curve(gradient, padded)[..., 6:], np.repeat(curve[..., 5:], 2, -1))


def test_overlap_of_zero_tiny_and_contained_gradients() -> None:
    basis = orthonormal(np.random.default_rng(5), 7, 3)
    gradients = np.stack([np.zeros(7), 1e-200 * basis[:, 1], basis @ np.ones(3)])
    curve = subspace.overlap_curve(gradients, basis)
    assert np.isnan(curve[0]).all()
    np.testing.assert_allclose(curve[1:], np.array([[0, 1, 1], [1 / 3, 2 / 3, 1]]), atol=1e-12)
    assert curve[1:].max() <= 1


@given(seed=seeds, scale=st.floats(1e-100, 1e100))
@settings(max_examples=25)
def test_overlaps_and_angles_do_not_see_rotation_or_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    gradient, first, second = rng.normal(size=7), orthonormal(rng, 7, 4), orthonormal(rng, 7, 2)
    turn = orthonormal(rng, 7, 7)
    curve: Floats = subspace.overlap_curve(gradient, first)
    np.testing.assert_allclose(subspace.overlap_curve(turn @ gradient * -scale, turn @ first), curve, atol=1e-10)
    assert np.all(np.diff(curve) >= 0)
    angles = subspace.principal_angles(first, second)
    mixed = turn @ first @ orthonormal(rng, 4, 4)
    np.testing.assert_allclose(subspace.principal_angles(mixed, turn @ second), angles, atol=1e-10)
    np.testing.assert_allclose(subspace.principal_angles(second, first), angles, atol=1e-10)


@pytest.mark.parametrize(("k", "other_k"), [(1, 1), (3, 3), (2, 6), (6, 2), (8, 8)])
def test_principal_angles_equal_scipys(k: int, other_k: int) -> None:
    rng = np.random.default_rng(6)
    first, second = orthonormal(rng, 12, k), orthonormal(rng, 12, other_k)
    angles = subspace.principal_angles(first, second)
    # SciPy lists the largest first. Where 8 + 8 > 12 dimensions must share some, it takes the zeros from their cosines.
    expected = scipy.linalg.subspace_angles(first, second)[::-1]
    np.testing.assert_allclose(angles, expected, rtol=1e-8, atol=1e-7 if k + other_k > 12 else 0)


@pytest.mark.parametrize("known", [[1e-12, 1e-9], [1e-9, 1.2], [1e-5, 0.5, np.pi / 4, 1.0], [0.3, np.pi / 2 - 1e-10]])
def test_known_angles_are_found_however_small(known: list[float]) -> None:
    rng = np.random.default_rng(7)
    first = orthonormal(rng, 40, len(known))
    second = rotated_by(rng, first, np.array(known))
    np.testing.assert_allclose(subspace.principal_angles(first, second), known, rtol=1e-8, atol=1e-15)


def test_angles_from_cosines_alone_would_be_caught() -> None:
    rng = np.random.default_rng(7)
    first = orthonormal(rng, 40, 2)
    second = rotated_by(rng, first, np.array([1e-9, 1e-3]))
    naive = np.arccos(np.minimum(scipy.linalg.svdvals(first.T @ second), 1))
    assert abs(naive[0] - 1e-9) > 1e-10


def test_angles_of_all_pairs_of_steps_by_broadcasting() -> None:
    rng = np.random.default_rng(8)
    bases = np.stack([orthonormal(rng, 9, 3) for _ in range(4)])
    angles = subspace.principal_angles(bases[:, None], bases[None])
    assert angles.shape == (4, 4, 3)
    np.testing.assert_allclose(angles[np.arange(4), np.arange(4)], 0, atol=1e-14)
    np.testing.assert_allclose(angles[1, 3], subspace.principal_angles(bases[1], bases[3]), rtol=1e-12)


def test_bases_that_are_not_orthonormal_are_refused() -> None:
    basis = orthonormal(np.random.default_rng(9), 6, 3)
    skewed = basis * np.array([1.0, 1.001, 1.0])
    with pytest.raises(ValueError, match="the columns of a basis must be orthonormal"):
        subspace.overlap_curve(np.ones(6), skewed)
    with pytest.raises(ValueError, match="the columns of a basis must be orthonormal"):
        subspace.principal_angles(basis, skewed)
    with pytest.raises(ValueError, match="the columns of a basis must be orthonormal"):
        subspace.principal_angles(basis, basis * np.array([1.0, 1.0, 0.0]))  # of which dimension?
    single = basis.astype(np.float32)
    np.testing.assert_allclose(subspace.principal_angles(single, single), 0, atol=1e-12)
    np.testing.assert_allclose(subspace.overlap_curve(single[:, 0], single), 1, rtol=1e-6)
