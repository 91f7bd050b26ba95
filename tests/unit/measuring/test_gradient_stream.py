"""Summaries of a stream of gradients equal the whole, however it is cut, and say what they lost."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from fganalysis.measuring import gradient_stream, subspace
from tests.unit.measuring.subspace.matrices import Floats, with_spectrum


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


def test_streams_of_very_different_scales_add() -> None:
    gradients = decaying(3)
    stream = gradient_stream.StreamingSubspace.of(1e150 * gradients).add(1e-150 * gradients).add(0 * gradients)
    np.testing.assert_allclose(stream.modes().values, 1e150 * subspace.singular_values(gradients), rtol=1e-8)
    silent = gradient_stream.StreamingSubspace.of(0 * gradients).add(1e-200 * gradients)
    np.testing.assert_allclose(silent.modes().values, 1e-200 * subspace.singular_values(gradients), rtol=1e-8)
    for size in (1e-100, 1.0, 1e100):
        gram = gradient_stream.StreamingSubspace.of(size * gradients).gram
        np.testing.assert_allclose(gram / size / size, gradients.T @ gradients, rtol=1e-12, atol=1e-12)
