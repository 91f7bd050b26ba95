"""The mean of several guesses: exact for pairs of guesses by enumeration of both, and what averaging can reach."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    Estimator,
    OrthogonalUpstream,
    WeightPerturbation,
    label,
)
from fganalysis.estimators.around import averaged
from fganalysis.estimators.guesses import Estimates
from fganalysis.testing import Enumeration, signs
from tests import laws
from tests.regression import regression_snapshot
from theory import averaging, weight_perturbation
from theory.factors import Diagonal
from theory.linear_guess import moments


@dataclass
class Pairs:
    """Signs for two guesses a call; call after call goes through every pair of points."""

    n_draws_per_call: int
    n_points: int
    law: Enumeration = field(default_factory=signs)
    n_draws: int = 0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        call, draw = divmod(self.n_draws, self.n_draws_per_call)
        if draw == 0:
            self.law.drawn = 0
        self.n_draws += 1
        drawn = self.law.drawn
        guesses = []
        for point in divmod(call, self.n_points):
            self.law.first, self.law.drawn = point, drawn
            guesses.append(self.law.draw((1, *shape[1:]), generator, like))
        return torch.cat(guesses)

    def fourth(self, n: int) -> float:
        return 1.0

    def pair(self, n: int) -> float:
        return 1.0


def test_pairs_of_activity_guesses_are_exact() -> None:
    snapshot = regression_snapshot((2, 2, 1), n_examples=1)
    found = Averaged(ActivityPerturbation(noise=Pairs(2, 8)), 2)(snapshot, 64, torch.Generator()).dense(snapshot)
    activation, gradient = found[0], laws.exact_gradient(snapshot)[0]
    assert activation is not None
    torch.testing.assert_close(activation.mean(0), gradient, rtol=0, atol=1e-12)
    single = moments(
        [g.numpy() for g in snapshot.gradients],
        [Diagonal(np.ones((1, 2))), Diagonal(np.ones((1, 1)))],
        [1.0, 1.0],
        [1.0, 1.0],
        shared=False,
        slope="example",
        layers="joint",
    )
    for part, one in zip(activation.split([2, 1], dim=1), single, strict=True):
        two = averaging.averaged_moments(one, 2)
        np.testing.assert_allclose(two.squares.ravel(), part.square().mean(0).numpy(), rtol=1e-12)
        np.testing.assert_allclose(two.second_moment(), float(part.square().sum(1).mean()), rtol=1e-12)
        # A guess more or less in the mean is caught.
        assert abs(averaging.averaged_moments(one, 3).second_moment() / two.second_moment() - 1) > 1e-2


def test_pairs_of_weight_guesses_are_exact() -> None:
    snapshot = regression_snapshot((1, 2, 1))
    found = Averaged(WeightPerturbation(noise=Pairs(2, 16)), 2)(snapshot, 256, torch.Generator()).dense(snapshot)[1]
    torch.testing.assert_close(found.mean(0), laws.exact_gradient(snapshot)[1], rtol=0, atol=1e-12)
    squares = [float(g.square().sum()) for g in snapshot.weight_gradients]
    single = weight_perturbation.second_moments(squares, [2, 2], [1.0, 1.0], [1.0, 1.0], layers="joint")
    enumerated = [float(part.square().sum(1).mean()) for part in found.split([2, 2], dim=1)]
    np.testing.assert_allclose(averaging.second_moment(single, squares, 2), enumerated, rtol=1e-12)


def test_products_between_examples_are_exact_in_weight_space() -> None:
    """The same numbers by `second_moment` with a kernel: variances divide, squared means do not."""
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=3)
    single = moments(
        [g.numpy() for g in snapshot.gradients],
        [Diagonal(np.ones(tuple(g.shape))) for g in snapshot.gradients],
        [3.0, 3.0],
        [1.0, 1.0],
        shared=True,
        slope="example",
        layers="joint",
    )
    for one, tap, gradient in zip(single, snapshot.taps, snapshot.weight_gradients, strict=True):
        kernel, squared = tap.kernel.numpy(), float(gradient.square().sum())
        wanted = averaging.second_moment(one.second_moment(kernel), squared, 5)
        np.testing.assert_allclose(averaging.averaged_moments(one, 5).second_moment(kernel), wanted, rtol=1e-12)


@given(
    ceiling=st.floats(1e-4, 1.0),
    share=st.floats(1e-3, 0.999),
    variance=st.floats(1e-3, 1e5),
    squared_mean=st.floats(1e-3, 1e3),
)
@settings(max_examples=50)
def test_the_number_of_guesses_needed_is_the_least(
    ceiling: float, share: float, variance: float, squared_mean: float
) -> None:
    target = ceiling * share
    needed = float(averaging.guesses_needed(target, ceiling, variance, squared_mean))
    assert averaging.efficiency(ceiling, variance, squared_mean, needed) >= target * (1 - 1e-9)
    if needed > 1:
        assert averaging.efficiency(ceiling, variance, squared_mean, needed - 1) < target * (1 + 1e-9)


def test_what_no_number_of_guesses_reaches() -> None:
    found = averaging.guesses_needed(np.array([0.4, 0.5, 0.6]), 0.5, 10.0, 1.0)
    np.testing.assert_array_equal(found, [40, np.inf, np.inf])
    np.testing.assert_allclose(averaging.efficiency(0.5, 10.0, 1.0, 1e12), 0.5)
    with pytest.raises(ValueError, match="target must be between 0 and 1"):
        averaging.guesses_needed(1.0, 0.5, 1.0, 1.0)
    with pytest.raises(ValueError, match="n_averaged must be at least 1, got 0"):
        averaging.second_moment(1.0, 1.0, 0)


@dataclass
class Counting:
    """An estimator that keeps what it gave and how many guesses were asked for at a time."""

    estimator: Estimator
    asked: list[int] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        found = self.estimator(snapshot, n_guesses, generator)
        self.asked.append(n_guesses)
        self.given += found.dense(snapshot)[1]
        return found


@pytest.mark.parametrize("estimator", [ActivityPerturbation(), WeightPerturbation()], ids=label)
def test_no_more_than_fits_is_held_at_once(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=3)
    counting = Counting(estimator)
    monkeypatch.setattr(averaged, "NUMBERS_HELD", 4 * 20 + 3)
    found = Averaged(counting, 10)(snapshot, 3, torch.Generator().manual_seed(0)).dense(snapshot)[1]
    assert counting.asked == [4, 4, 2] * 3
    wanted = torch.stack(counting.given).view(3, 10, -1).mean(1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("estimator", [OrthogonalUpstream(k=1), WeightPerturbation()], ids=label)
def test_the_mean_of_one_guess_is_the_guess(estimator: Estimator) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=3)
    wanted = laws.guesses_of(estimator, snapshot, n_guesses=1)
    for one, other in zip(laws.guesses_of(Averaged(estimator, 1), snapshot, n_guesses=1), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_averaging_what_is_not_random_changes_nothing() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=3)
    for guesses, exact in zip(
        laws.guesses_of(Averaged(Backpropagation(), 3), snapshot), laws.exact_gradient(snapshot), strict=True
    ):
        torch.testing.assert_close(guesses, exact.expand_as(guesses))


def test_names_tell_apart_what_is_averaged() -> None:
    assert label(Averaged(OrthogonalUpstream(k=2), 4)) == "Averaged(estimator=orthogonal(k=2), n_averaged=4)"
