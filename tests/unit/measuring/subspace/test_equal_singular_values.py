"""Equal singular values, whose vectors are any basis of their span: no number depends on the basis drawn."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fganalysis.measuring import gradient_stream, subspace
from tests.unit.measuring.subspace.matrices import Floats, orthonormal, seeds, with_spectrum


def test_single_precision_leaves_equal_what_its_rounding_separates() -> None:
    rng = np.random.default_rng(2)
    matrix, right = with_spectrum(rng, 20, 10, np.array([3.0, 2.0, 2.0, 1.0, 0.5, 0.2]))
    single = matrix.astype(np.float32)
    stream = gradient_stream.StreamingSubspace.of(single[:9]).add(single[9:].astype(np.float64))
    incremental = gradient_stream.IncrementalSubspace.of(single[:9], 8).add(single[9:].astype(np.float64))
    for found in (subspace.modes(single), stream.modes(), incremental.modes()):
        with pytest.raises(ValueError, match="singular values 2 and 3 are equal"):
            found.leading(2)
        for k in (1, 3):
            angles = subspace.principal_angles(found.leading(k), np.ascontiguousarray(right[:, :k]))
            np.testing.assert_allclose(angles, 0, atol=1e-6)
    torch.manual_seed(0)
    for unit in (2, 8, 30, 128):
        drawn = torch.nn.init.orthogonal_(torch.empty(unit, unit))
        assert not subspace.modes(drawn).distinct.any()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_between_equal_singular_values_an_overlap_is_that_of_a_random_basis(kind: Callable[[Floats], Any]) -> None:
    rng = np.random.default_rng(17)
    matrix, right = with_spectrum(rng, 9, 6, np.array([3.0, 2.0, 2.0, 2.0, 1.0]))
    gradient = rng.normal(size=(4, 6))
    curve = subspace.overlap_curve(kind(gradient), subspace.modes(kind(matrix)))
    ends = np.cumsum((gradient @ right) ** 2, axis=1) / np.sum(gradient**2, axis=1, keepdims=True)
    between = ends[:, :1] + (ends[:, 3:4] - ends[:, :1]) * np.arange(4) / 3
    np.testing.assert_allclose(curve[:, :4], between, atol=1e-10)
    np.testing.assert_allclose(curve[:, 4], ends[:, 4], atol=1e-10)
    # 4 standard errors of 2000 drawn bases, which reach .02
    turned = right[:, 1:4] @ np.linalg.qr(rng.normal(size=(2000, 3, 3)))[0]
    drawn = (gradient @ turned[:, :, 0].T) ** 2 / np.sum(gradient**2, axis=1, keepdims=True)
    error = drawn.std(1) / np.sqrt(2000)
    assert np.all(np.abs(drawn.mean(1) - (between[:, 1] - between[:, 0])) <= 4 * error)


def turned_within_ties(rng: np.random.Generator, found: subspace.Modes[Floats], ties: slice) -> subspace.Modes[Floats]:
    """The same modes as another library may return them: other signs, and another basis of the tied ones."""
    vectors = found.vectors * rng.choice([-1.0, 1.0], size=found.values.shape)
    vectors[:, ties] = vectors[:, ties] @ orthonormal(rng, ties.stop - ties.start, ties.stop - ties.start)
    return replace(found, vectors=vectors)


@given(seed=seeds)
@settings(max_examples=25)
def test_no_number_depends_on_the_basis_of_equal_or_zero_singular_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = with_spectrum(rng, 12, 9, np.array([3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0]))[0]
    gradient = rng.normal(size=(4, 9))
    fixed = orthonormal(rng, 9, 2)
    stream, incremental = (
        gradient_stream.StreamingSubspace.of(matrix).modes(),
        gradient_stream.IncrementalSubspace.of(matrix, 8).modes(),
    )
    for found in (subspace.modes(matrix), stream, incremental):
        other = turned_within_ties(rng, found, slice(1, 4))
        expected = subspace.overlap_curve(gradient, subspace.modes(matrix))
        for one in (found, other):
            curve = subspace.overlap_curve(gradient, one)
            np.testing.assert_allclose(curve[:, :5], expected[:, :5], atol=1e-9)
            np.testing.assert_allclose(curve[:, 5:], curve[:, [4]].repeat(curve.shape[1] - 5, 1), atol=1e-12)
        for k in (1, 4, 5):
            angles = [subspace.principal_angles(one.leading(k), fixed) for one in (found, other)]
            np.testing.assert_allclose(angles[0], angles[1], atol=1e-7)
        for k in (2, 3):
            with pytest.raises(ValueError, match=f"singular values {k} and {k + 1} are equal"):
                found.leading(k)
        with pytest.raises(ValueError, match="k must be between 1 and 5, the smallest rank, got 6"):
            found.leading(6)


def test_a_summary_that_cut_through_equal_singular_values_says_so() -> None:
    """Of ten equal directions three are kept: which, is chance, and so would be everything made of the last ones."""
    rng = np.random.default_rng(21)
    matrix = with_spectrum(rng, 30, 20, np.array([3.0, *[2.0] * 10, 1.0]))[0]
    gradient = rng.normal(size=20)
    cut = [
        gradient_stream.IncrementalSubspace.of(matrix, 4).modes(),
        gradient_stream.IncrementalSubspace.of(matrix[::-1], 4).modes(),
        subspace.randomised_modes(matrix, 4, seed=0, power_iterations=20).modes,
        subspace.randomised_modes(matrix, 4, seed=1, oversampling=0, power_iterations=20).modes,
    ]
    for found in cut:
        with pytest.raises(ValueError, match="singular values 4 and 5 are equal, so 4 leading directions are undet"):
            found.leading(4)
        found.leading(1)
        curve = subspace.overlap_curve(gradient, found)
        assert np.isfinite(curve[0])
        assert np.isnan(curve[1:]).all()
    for whole in (
        gradient_stream.IncrementalSubspace.of(matrix, 11).modes(),
        gradient_stream.IncrementalSubspace.of(matrix, 12).modes(),
        subspace.randomised_modes(matrix, 11, seed=0, power_iterations=20).modes,
        subspace.randomised_modes(matrix, 20, seed=0).modes,
    ):
        assert whole.leading(11).shape == (20, 11)
        expected = subspace.overlap_curve(gradient, subspace.modes(matrix))
        np.testing.assert_allclose(subspace.overlap_curve(gradient, whole)[:11], expected[:11], atol=1e-8)
