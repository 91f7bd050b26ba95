"""Any estimator on a part of the batch: what a part is, and the laws that it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fganalysis as fga
from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    Estimator,
    Minibatch,
    OrthogonalUpstream,
    Subsampled,
    WeightPerturbation,
)
from fganalysis.estimators.around.subsampled import restricted
from fganalysis.estimators.noise import GAUSSIAN
from fganalysis.testing import signs
from tests import laws
from tests.regression import regression_snapshot
from tests.unit.estimators.split_variance import enumerate_split
from theory import minibatch


def test_the_mean_is_that_of_the_whole_batch() -> None:
    snapshot = regression_snapshot((2, 2, 1), n_examples=4)
    split = enumerate_split(ActivityPerturbation(), snapshot, signs, 1)
    torch.testing.assert_close(torch.cat(split.means), laws.exact_gradient(snapshot)[1])


@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_the_part_of_a_snapshot_is_a_snapshot_of_the_part(autodiff: Any) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=5, bias=True, activation=nn.ReLU, autodiff=autodiff)
    rows = torch.tensor([3, 0, 4])
    part = restricted(snapshot, rows)
    anew = fga.capture(
        snapshot.network, snapshot.loss_fn, snapshot.inputs[rows], snapshot.targets[rows], autodiff=autodiff
    )
    torch.testing.assert_close(part.loss, anew.loss)
    for one, other in zip(part.gradients, anew.gradients, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(part.weight_gradients, anew.weight_gradients, strict=True):
        torch.testing.assert_close(one, other)
    for tap, new in zip(part.upstream, anew.upstream, strict=True):
        torch.testing.assert_close(tap.dense(), new.dense())
    assert part.n_examples == 3 and snapshot.n_examples == 5


def test_backpropagation_on_a_part_is_the_minibatch_gradient() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=5, bias=True)
    wanted = laws.guesses_of(Minibatch(3), snapshot)
    for one, other in zip(laws.guesses_of(Subsampled(Backpropagation(), 3), snapshot), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_whole_batch_as_its_part_changes_nothing_but_the_order() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=3)
    gradient = laws.exact_gradient(snapshot)
    for guess in laws.guesses_of(Subsampled(OrthogonalUpstream(k="rank"), 3), snapshot)[0]:
        assert float(guess @ gradient[0]) > 0
    (exact, _) = laws.guesses_of(Subsampled(Backpropagation(), 3), snapshot)
    torch.testing.assert_close(exact, gradient[0].expand_as(exact))


WRAPPED: list[Estimator] = [
    Subsampled(OrthogonalUpstream(k=1), 2),
    Subsampled(WeightPerturbation(), 2),
    Subsampled(Averaged(ActivationMixing(), 2), 2),
    Averaged(Subsampled(Minibatch(1), 2), 3),
]


@pytest.mark.parametrize("estimator", WRAPPED, ids=fga.estimators.label)
def test_named_laws_hold(estimator: Estimator) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, bias=True, activation=nn.ReLU)
    forward = laws.tiny_snapshot((3, 4, 3, 2), 3, bias=True, activation=nn.ReLU, autodiff="forward")
    laws.assert_seeded(estimator, snapshot)
    laws.assert_modes_agree(estimator, snapshot, forward)
    laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


def test_parts_of_extremes() -> None:
    snapshot, generator = laws.tiny_snapshot((3, 4, 2), n_examples=6), torch.Generator().manual_seed(0)
    alone = fga.variance_parts(Subsampled(Backpropagation(), 2), snapshot, 200, generator)
    np.testing.assert_allclose(alone.within.value, 0, atol=1e-15)
    g = snapshot.gradients[0].numpy()
    exact = minibatch.variance(np.eye(6) * (g @ g.T), 2)
    assert abs(alone.between.value[0, 0] - exact) < 4 * alone.between.se[0, 0]
    whole = fga.variance_parts(Subsampled(WeightPerturbation(noise=GAUSSIAN), 6), snapshot, 400, generator)
    assert np.isnan(whole.within.value[0]).all() and np.isfinite(whole.within.value[1]).all()
    assert (np.abs(whole.between.value[1]) < 4 * whole.between.se[1]).all()


def test_bad_sizes_are_refused() -> None:
    snapshot = laws.tiny_snapshot(n_examples=3)
    with pytest.raises(ValueError, match="size must be at most the batch's 3 examples, got 4"):
        Subsampled(Backpropagation(), 4)(snapshot, 1, torch.Generator())
    with pytest.raises(ValueError, match="n_draws must be a whole number of at least 32, got 31"):
        fga.variance_parts(Subsampled(Backpropagation(), 2), snapshot, 31, torch.Generator())
