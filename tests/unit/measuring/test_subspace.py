"""Spectra, overlaps, angles and their summaries against NumPy, SciPy and matrices whose answer is known."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fganalysis.measuring import gradient_stream, subspace

Floats = NDArray[np.float64]
RANK_MEASURES = (subspace.stable_rank, subspace.entropy_rank, subspace.participation_ratio)
seeds = st.integers(0, 2**32 - 1)


def orthonormal(rng: np.random.Generator, unit: int, k: int) -> Floats:
    return np.linalg.qr(rng.normal(size=(unit, k)))[0]


def with_spectrum(rng: np.random.Generator, example: int, unit: int, values: Floats) -> tuple[Floats, Floats]:
    """A matrix with the given singular values, and its right singular vectors (unit, mode)."""
    left, right = orthonormal(rng, example, len(values)), orthonormal(rng, unit, len(values))
    return (left * values) @ right.T, right


def rotated_by(rng: np.random.Generator, basis: Floats, angles: Floats) -> Floats:
    """A basis at the given principal angles to ``basis``, its columns mixed."""
    unit, k = basis.shape
    beside = np.linalg.qr(np.hstack([basis, rng.normal(size=(unit, k))]))[0][:, k:]
    return (basis * np.cos(angles) + beside * np.sin(angles)) @ orthonormal(rng, k, k)


# Spectra


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


@pytest.mark.parametrize("measure", [*RANK_MEASURES, subspace.energy_curve])
def test_a_zero_spectrum_has_no_ranks(measure: Callable[[Floats], Floats]) -> None:
    found = subspace.modes(np.zeros((2, 4, 3)))
    np.testing.assert_array_equal(found.rank, [0, 0])
    assert np.isnan(measure(found.values)).all()


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


def test_numbers_of_single_precision_count_their_own_rounding_as_zero() -> None:
    rng = np.random.default_rng(3)
    matrix = (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 30))).astype(np.float32)
    assert subspace.modes(matrix).rank == 3
    assert subspace.modes(matrix.astype(np.float64)).rank > 3  # the rounding itself has full rank
    assert subspace.singular_values(matrix).dtype == np.float64


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


# Overlaps and angles


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


# Random subspaces


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


# Summaries of a stream


def decaying(seed: int, example: int = 60, unit: int = 12) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(example, unit)) * 0.7 ** np.arange(unit)


@given(cuts=st.lists(st.integers(1, 59), max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_streaming_equals_batch_however_it_is_cut(cuts: list[int], seed: int) -> None:
    gradients = decaying(seed)
    first, *rest = [part for part in np.split(gradients, sorted(set(cuts)))]
    stream = gradient_stream.StreamingSubspace.of(first)
    for part in rest:
        stream = stream.add(part)
    found, expected = stream.modes(), subspace.modes(gradients)
    assert stream.n_examples == 60
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-8)
    angles = subspace.principal_angles(found.leading(4), expected.leading(4))
    np.testing.assert_allclose(angles, 0, atol=1e-8)


def test_merging_streams_is_associative_and_commutative() -> None:
    a, b, c = (gradient_stream.StreamingSubspace.of(decaying(seed)) for seed in range(3))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    np.testing.assert_allclose(left.gram, right.gram, rtol=1e-13, atol=1e-13 * np.trace(left.gram))
    np.testing.assert_array_equal(a.merge(b).gram, b.merge(a).gram)
    assert left.n_examples == right.n_examples == 180


def test_streaming_counts_what_it_cannot_resolve_as_zero() -> None:
    rng = np.random.default_rng(11)
    matrix, _ = with_spectrum(rng, 30, 10, np.array([1.0, 1e-3, 1e-6, 1e-12]))
    found = gradient_stream.StreamingSubspace.of(matrix).modes()
    assert found.rank == 3
    np.testing.assert_allclose(found.values[:3], [1, 1e-3, 1e-6], rtol=1e-3)
    assert gradient_stream.StreamingSubspace.of(np.zeros(4)).modes().rank == 0


def test_incremental_is_exact_while_the_rank_suffices() -> None:
    rng = np.random.default_rng(12)
    matrix, _ = with_spectrum(rng, 50, 20, np.array([5.0, 2.0, 1.0, 1e-6]))
    stream = gradient_stream.IncrementalSubspace.of(matrix[:7], rank=5)
    for part in (matrix[7:8], matrix[8:30]):
        stream = stream.add(part)
    stream = stream.merge(gradient_stream.IncrementalSubspace.of(matrix[30:], rank=5))
    assert stream.n_examples == 50
    np.testing.assert_allclose(stream.modes().values[:4], [5, 2, 1, 1e-6], rtol=1e-8)
    assert stream.remainder < 1e-14
    assert stream.rows.shape == (5, 20)


@pytest.mark.parametrize("decay", [0.7, 0.95, 1.0])
def test_incremental_error_bounds_hold_in_any_order(decay: float) -> None:
    rng = np.random.default_rng(13)
    gradients = rng.normal(size=(90, 16)) * decay ** np.arange(16)
    parts = [gradient_stream.IncrementalSubspace.of(part, rank=6) for part in np.split(gradients, 3)]
    orders = [parts[0].merge(parts[1]).merge(parts[2]), parts[0].merge(parts[1].merge(parts[2])), parts[0]]
    for part in (*gradients[30:40, None], gradients[40:]):
        orders[2] = orders[2].add(part)
    exact = scipy.linalg.svdvals(gradients) ** 2
    slack = 1e-12 * exact[0]
    for stream in orders:
        kept = np.pad(stream.modes().values ** 2, (0, 10))
        assert np.all(kept <= exact + slack)
        assert np.all(exact <= kept + stream.remainder**2 + slack)
        np.testing.assert_allclose(np.sum(kept) + stream.lost**2, np.sum(gradients**2), rtol=1e-12)
        gaps = np.linalg.eigvalsh(gradients.T @ gradients - stream.rows.T @ stream.rows)
        assert gaps.min() >= -slack
        assert gaps.max() <= stream.remainder**2 + slack
    # A negative control: what the last truncation dropped does not bound the error of all three before it.
    last = orders[0].remainder ** 2 - parts[0].merge(parts[1]).remainder ** 2 - parts[2].remainder ** 2
    gap = np.linalg.eigvalsh(gradients.T @ gradients - orders[0].rows.T @ orders[0].rows).max()
    assert 0 < last < 0.9 * gap


def test_summaries_refuse_what_does_not_fit() -> None:
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match="arrays must have the same number of units, got 3 and 4"):
        gradient_stream.StreamingSubspace.of(ones).add(np.ones((2, 4)))
    with pytest.raises(ValueError, match="arrays must have the same number of units, got 3 and 4"):
        gradient_stream.IncrementalSubspace.of(ones, rank=2).add(np.ones((2, 4)))
    with pytest.raises(ValueError, match="summaries must have the same rank, got 2 and 3"):
        gradient_stream.IncrementalSubspace.of(ones, rank=2).merge(gradient_stream.IncrementalSubspace.of(ones, rank=3))
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1, got 0"):
        gradient_stream.IncrementalSubspace.of(ones, rank=0)
    other: Any = gradient_stream.IncrementalSubspace.of(ones, rank=2)
    with pytest.raises(ValueError, match="other must be a StreamingSubspace, got IncrementalSubspace"):
        gradient_stream.StreamingSubspace.of(ones).merge(other)
    with pytest.raises(ValueError, match="squares of gradients leave the range of a double"):
        _ = gradient_stream.StreamingSubspace.of(1e160 * ones).gram


# Scale


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


def test_streams_of_very_different_scales_add() -> None:
    gradients = decaying(3)
    stream = gradient_stream.StreamingSubspace.of(1e150 * gradients).add(1e-150 * gradients).add(0 * gradients)
    np.testing.assert_allclose(stream.modes().values, 1e150 * subspace.singular_values(gradients), rtol=1e-8)
    silent = gradient_stream.StreamingSubspace.of(0 * gradients).add(1e-200 * gradients)
    np.testing.assert_allclose(silent.modes().values, 1e-200 * subspace.singular_values(gradients), rtol=1e-8)
    for size in (1e-100, 1.0, 1e100):
        gram = gradient_stream.StreamingSubspace.of(size * gradients).gram
        np.testing.assert_allclose(gram / size / size, gradients.T @ gradients, rtol=1e-12, atol=1e-12)


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


# Equal and zero singular values: which vectors a library returns is chance


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


# Large matrices


@pytest.mark.parametrize("spectrum", ["steep", "slow", "flat"])
def test_randomised_bounds_hold(spectrum: str) -> None:
    rng = np.random.default_rng(14)
    order = np.arange(80.0)
    spectra: dict[str, Floats] = {"steep": 0.5**order, "slow": 1.0 / (1 + order), "flat": 1 - order / 1000}
    values = spectra[spectrum]
    matrix, right = with_spectrum(rng, 120, 90, values)
    for power_iterations in (0, 2):
        found = subspace.randomised_modes(matrix, 8, seed=0, power_iterations=power_iterations)
        kept = found.modes.values
        assert np.all(kept <= values[:8] + 1e-12)
        assert np.all(values[:8] ** 2 <= kept**2 + found.remainder**2 + 1e-12)
        nearest = np.abs(kept[:, None] - np.append(values, 0)).min(-1)
        assert np.all(nearest <= found.error + 1e-12)
    if spectrum == "steep":
        np.testing.assert_allclose(kept, values[:8], rtol=1e-8)
        assert found.error.max() < 1e-8
        angles = subspace.principal_angles(found.modes.leading(8), np.ascontiguousarray(right[:, :8]))
        np.testing.assert_allclose(angles, 0, atol=1e-8)
    if spectrum == "flat":  # where the method fails it says so
        assert found.remainder > 1
        assert found.error.max() > 1e-4


def test_randomised_modes_depend_on_the_seed_alone_and_are_exact_when_the_sketch_is_complete() -> None:
    matrix = np.random.default_rng(15).normal(size=(12, 30))
    first, again, other = (subspace.randomised_modes(matrix, 3, seed=seed, oversampling=4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.modes.values, again.modes.values)
    assert not np.allclose(first.modes.values, other.modes.values, rtol=1e-12)
    # Without oversampling the sketched range is that of the modes, and what they lack is known.
    bare = subspace.randomised_modes(matrix, 3, seed=1, oversampling=0)
    np.testing.assert_allclose(bare.remainder**2, np.sum(matrix**2) - np.sum(bare.modes.values**2), rtol=1e-10)
    whole = subspace.randomised_modes(matrix, 12, seed=0)
    np.testing.assert_allclose(whole.modes.values, scipy.linalg.svdvals(matrix), rtol=1e-8)
    assert whole.remainder < 1e-12
    nothing = subspace.randomised_modes(np.zeros((5, 4)), 2, seed=0)
    assert nothing.modes.rank == 0
    assert nothing.remainder == 0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_randomised_bounds_do_not_see_scale(scale: float) -> None:
    matrix = np.random.default_rng(18).normal(size=(120, 100))
    whole, scaled = (
        subspace.randomised_modes(size * matrix, 3, seed=0, oversampling=0, power_iterations=0) for size in (1, scale)
    )
    np.testing.assert_allclose(scaled.modes.values / scale, whole.modes.values, rtol=1e-10)
    np.testing.assert_allclose(scaled.error / scale, whole.error, rtol=1e-10)
    np.testing.assert_allclose(scaled.remainder / scale, whole.remainder, rtol=1e-10)
    assert whole.remainder > 1


def test_randomised_modes_refuse_by_name() -> None:
    matrix = np.ones((5, 4))
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k must be between 1 and 4, the smaller side of the matrix, got {k}"):
            subspace.randomised_modes(matrix, k, seed=0)
    with pytest.raises(ValueError, match=r"matrix must be \(example, unit\), got the shape \(2, 5, 4\)"):
        subspace.randomised_modes(np.ones((2, 5, 4)), 1, seed=0)
    with pytest.raises(ValueError, match="oversampling must be a whole number of at least 0, got -1"):
        subspace.randomised_modes(matrix, 1, seed=0, oversampling=-1)


# Kinds of arrays and what is refused everywhere


def descending(array: Any) -> Any:
    return np.sort(array)[..., ::-1] if isinstance(array, np.ndarray) else array.sort(descending=True).values


ONE_ARRAY: dict[str, Callable[[Any], Any]] = {
    "singular_values": subspace.singular_values,
    "modes": lambda array: subspace.modes(array).values,
    "randomised_modes": lambda array: subspace.randomised_modes(array, 1, seed=0).modes.values,
    "energy_curve": lambda array: subspace.energy_curve(descending(array)),
    "stable_rank": subspace.stable_rank,
    "entropy_rank": subspace.entropy_rank,
    "participation_ratio": subspace.participation_ratio,
    "modes_for_energy": lambda array: subspace.modes_for_energy(descending(array)),
    "overlap_curve": lambda array: subspace.overlap_curve(array, array),
    "principal_angles": lambda array: subspace.principal_angles(array, array),
    "streaming": lambda array: gradient_stream.StreamingSubspace.of(array).modes().values,
    "incremental": lambda array: gradient_stream.IncrementalSubspace.of(array, rank=2).modes().values,
}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("name", ONE_ARRAY)
def test_tensors_give_the_numbers_of_arrays(name: str) -> None:
    array = np.abs(np.linalg.qr(np.eye(3)[::-1])[0])  # orthonormal and not negative: sound input for all of them
    expected = ONE_ARRAY[name](array)
    assert isinstance(expected, np.ndarray | np.generic)
    for device in DEVICES:
        found = ONE_ARRAY[name](torch.tensor(array, dtype=torch.float32, device=device, requires_grad=True))
        assert isinstance(found, torch.Tensor)
        assert found.device.type == device
        assert not found.requires_grad
        assert found.dtype in (torch.float64, torch.int64)
        np.testing.assert_allclose(found.cpu().numpy(), np.asarray(expected), rtol=1e-8)


@pytest.mark.parametrize("name", ONE_ARRAY)
def test_unsound_arrays_are_refused_by_name(name: str) -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite entries"):
            ONE_ARRAY[name](np.diag([1.0, bad]))
    with pytest.raises(ValueError, match="none empty, got"):
        ONE_ARRAY[name](np.ones((0, 3)))
    with pytest.raises(ValueError, match="arrays must hold float32 or float64 numbers, got int64"):
        ONE_ARRAY[name](np.eye(2, dtype=np.int64))
    with pytest.raises(ValueError, match="arrays must hold float32 or float64 numbers, got float16"):
        ONE_ARRAY[name](torch.eye(2, dtype=torch.float16))


def test_other_mistakes_are_refused_by_name() -> None:
    listed: Any = [[1.0, 2.0]]
    with pytest.raises(ValueError, match="matrix must be a NumPy array or a torch tensor, got a list"):
        subspace.singular_values(listed)
    with pytest.raises(ValueError, match=r"matrix must have at least 2 dimensions, none empty, got \(3,\)"):
        subspace.modes(np.ones(3))
    with pytest.raises(ValueError, match="singular values must not be negative"):
        subspace.stable_rank(np.array([1.0, -1.0]))
    tensor: Any = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="one kind and device, got a NumPy array and a tensor on cpu"):
        subspace.overlap_curve(np.ones(3), tensor)
    with pytest.raises(ValueError, match="arrays must have the same number of units, got 4 and 3"):
        subspace.overlap_curve(np.ones(4), np.eye(3))
    with pytest.raises(ValueError, match="arrays must have the same number of units, got 3 and 4"):
        subspace.principal_angles(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match=r"leading dimensions must broadcast, got \(2,\) and \(5,\)"):
        subspace.overlap_curve(np.ones((2, 3)), np.stack([np.eye(3)] * 5))
    with pytest.raises(ValueError, match=r"leading dimensions must broadcast, got \(2,\) and \(5,\)"):
        subspace.principal_angles(np.stack([np.eye(3)] * 2), np.stack([np.eye(3)] * 5))
    sparse: Any = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match="matrix must be a dense tensor, not a sparse or nested one"):
        subspace.singular_values(sparse)
    rising = np.array([1.0, 2.0, 3.0])
    for curve in (subspace.energy_curve, subspace.modes_for_energy):
        with pytest.raises(ValueError, match="singular values must be in descending order"):
            curve(rising)
    share: Any = "a"
    with pytest.raises(ValueError, match="share must be a finite number above 0 and at most 1, got 'a'"):
        subspace.modes_for_energy(rising[::-1], share)


NOT_WHOLE: dict[str, Callable[[Any], Any]] = {
    "k": lambda number: subspace.modes(np.eye(3)).leading(number),
    "unit": lambda number: subspace.random_overlap(1, number),
    "rank": lambda number: gradient_stream.IncrementalSubspace.of(np.eye(3), number),
    "seed": lambda number: subspace.randomised_modes(np.eye(3), 1, seed=number),
    "oversampling": lambda number: subspace.randomised_modes(np.eye(3), 1, seed=0, oversampling=number),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_numbers_that_are_not_whole_are_refused_by_name(name: str) -> None:
    for number in (2.0, 2.5, np.nan, "a", True):
        with pytest.raises(ValueError, match=f"{name} must be a whole number.*, got {number!r}"):
            NOT_WHOLE[name](number)
    nothing = np.array([], dtype=np.int64)
    for dimensions in (2.5, np.nan, nothing, np.array([2.5]), np.array([True]), np.array(["2"])):
        with pytest.raises(ValueError, match=r"k must be a whole number.*, got"):
            subspace.random_overlap(dimensions, 10)  # type: ignore[arg-type]


def test_arrays_that_cannot_be_written_or_run_backwards_are_taken() -> None:
    matrix = np.random.default_rng(16).normal(size=(4, 3))
    frozen = matrix[::-1, ::-1]
    frozen.flags.writeable = False
    np.testing.assert_allclose(subspace.singular_values(frozen), subspace.singular_values(matrix), rtol=1e-12)
