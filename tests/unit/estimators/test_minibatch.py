"""The minibatch gradient, by enumeration of every subset of rows, and its closed forms."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fganalysis.estimators import Minibatch
from tests import laws
from theory import minibatch

SNAPSHOT = laws.tiny_snapshot((3, 4, 2), n_examples=5, bias=True)


@dataclass(frozen=True)
class EverySubset:
    """Each subset of rows once, in turn."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
        subsets = torch.tensor(list(itertools.combinations(range(n_examples), size)))
        assert len(subsets) == n_guesses
        return subsets


@dataclass(frozen=True)
class WithReplacement:
    """A wrong law: each row independently of the others (all sequences, so that duplicates collapse)."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
        return torch.tensor(list(itertools.product(range(n_examples), repeat=size)))


def every_guess(size: int) -> tuple[Tensor, Tensor]:
    n_subsets = len(list(itertools.combinations(range(5), size)))
    activation, weight = Minibatch(size, EverySubset())(SNAPSHOT, n_subsets, torch.Generator()).dense(SNAPSHOT)
    assert activation is not None
    return activation, weight


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_mean_and_variance_over_every_subset_are_exact(size: int) -> None:
    for guesses, exact in zip(every_guess(size), laws.exact_gradient(SNAPSHOT), strict=True):
        torch.testing.assert_close(guesses.mean(0), exact, rtol=0, atol=1e-12)
    numbers = {
        "activation": [gradient.numel() for gradient in SNAPSHOT.gradients],
        "weight": [gradient.numel() for gradient in SNAPSHOT.weight_gradients],
    }
    for space, guesses in zip(numbers, every_guess(size), strict=True):
        variances = [part.var(0, correction=0).sum() for part in guesses.split(numbers[space], dim=1)]
        for tap, gradient, variance in zip(SNAPSHOT.taps, SNAPSHOT.gradients, variances, strict=True):
            kernel = np.eye(5) if space == "activation" else tap.kernel.numpy()
            g = gradient.numpy()
            predicted = minibatch.variance(kernel * (g @ g.T), size)
            np.testing.assert_allclose(predicted, variance, rtol=1e-10, atol=1e-15)
            moments = minibatch.gradient_moments(g, size)
            second = float((kernel * (g @ g.T)).sum()) + predicted
            np.testing.assert_allclose(moments.second_moment(kernel), second, rtol=1e-10)
            if size < 5:
                # Without the finite population correction, or one row off, the formula is caught.
                assert abs(predicted / (1 - size / 5) / float(variance) - 1) > 0.1
                assert abs(minibatch.variance(kernel * (g @ g.T), size + 1) / float(variance) - 1) > 0.1


def test_squares_by_element_are_exact() -> None:
    guesses = Minibatch(2, EverySubset())(SNAPSHOT, 10, torch.Generator()).guesses
    for gradient, guess in zip(SNAPSHOT.gradients, guesses, strict=True):
        moments = minibatch.gradient_moments(gradient.numpy(), 2)
        np.testing.assert_allclose(moments.squares, guess.square().mean(0).numpy(), rtol=1e-12)


def test_drawing_with_replacement_is_caught() -> None:
    guesses = Minibatch(2, WithReplacement())(SNAPSHOT, 25, torch.Generator()).dense(SNAPSHOT)[1]
    assert float((guesses.mean(0) - laws.exact_gradient(SNAPSHOT)[1]).norm()) > 1e-3


def test_every_subset_is_equally_likely() -> None:
    """Ten subsets, 20 000 draws: each count within 4.5 standard deviations (42) of 2000, a bias of 10 % is seen."""
    chosen = Minibatch(2).rows.draw(20_000, 5, 2, torch.Generator().manual_seed(0))
    counts = Counter(tuple(sorted(rows)) for rows in chosen.tolist())
    assert len(counts) == 10
    assert max(abs(count - 2000) for count in counts.values()) < 4.5 * (20_000 * 0.1 * 0.9) ** 0.5


@given(n_examples=st.integers(1, 12), data=st.data())
@settings(max_examples=25)
def test_inclusion_probabilities_count_subsets(n_examples: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, n_examples))
    row, pair = minibatch.inclusion(n_examples, size)
    assert np.isclose(row * n_examples, size)
    assert n_examples == 1 or np.isclose(pair * n_examples * (n_examples - 1), size * (size - 1))


def test_named_laws_hold() -> None:
    laws.assert_seeded(Minibatch(2), SNAPSHOT)
    laws.assert_equivariant_under_loss_scaling(Minibatch(2), SNAPSHOT)
    laws.assert_longer_run_extends(Minibatch(2), SNAPSHOT)


def test_a_size_that_no_subset_has_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be at most the batch's 5 examples, got 6"):
        Minibatch(6)(SNAPSHOT, 1, torch.Generator())
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"size must be from 1 to 5, got {size}"):
            minibatch.inclusion(5, size)
