"""Low-rank directions: their rank and place in every kind of parameter, exact moments, and what is not as claimed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import LowRankPerturbation, SubspacePerturbation, WeightPerturbation, label
from fganalysis.testing import signs, three_points
from tests.laws import tiny_snapshot
from tests.unit.predictions.test_exact_predictions import assert_predicted_exactly
from theory import low_rank_perturbation as theory

SQUARE = tiny_snapshot((2, 2, 2))
WITH_BIAS = tiny_snapshot((1, 2, 2), bias=True)


def convolutional() -> Snapshot:
    """A convolution, a normalisation layer, an embedding of positions and a parameter of no tap."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(2, 3, 2)
            self.norm = nn.LayerNorm(3)
            self.embedding = nn.Embedding(4, 3)
            self.token = nn.Parameter(torch.randn(1, 5, 3))
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.convolution(x).flatten(2).mT + self.embedding(torch.arange(4))
            rows = torch.cat([self.norm(rows), self.token.expand(len(x), -1, -1)], 1)
            return self.linear(torch.tanh(rows)).mean(1)

    torch.manual_seed(0)
    inputs, targets = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.arange(4) % 2
    return fga.capture(Network().double(), nn.functional.cross_entropy, inputs, targets)


def test_matrices_have_the_rank_and_vectors_no_structure() -> None:
    snapshot = convolutional()
    directions = LowRankPerturbation(rank=2).directions(snapshot, 3, torch.Generator().manual_seed(0))
    ranks = {}
    for layer, direction in zip(snapshot.weights, directions, strict=True):
        for name, part in layer.by_parameter(direction.written()).items():
            matrix = part.reshape(3, part.shape[1], -1)
            ranks[name] = set(torch.linalg.matrix_rank(matrix).tolist()), matrix.shape[1:]
    assert ranks["convolution.weight"] == ({2}, (3, 8))
    assert ranks["embedding.weight"] == ({2}, (4, 3))
    assert ranks["linear.weight"] == ({2}, (2, 3))
    # A single row by all others.
    assert ranks["token"] == ({1}, (1, 15))
    for name in ("convolution.bias", "norm.weight", "norm.bias", "linear.bias"):
        assert ranks[name][1][1] == 1


class Transposed(nn.Module):
    """A weight of shape (input, unit) with a bias, as in GPT-2, and one whose first axis is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.ConvTranspose2d(4, 6, 2), nn.Bilinear(6, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x)).mean((2, 3))
        return self.last(x, x)


def transposed() -> Snapshot:
    torch.manual_seed(0)
    inputs, targets = torch.randn(4, 4, 2, 2, dtype=torch.float64), torch.arange(4) % 3
    return fga.capture(Transposed().double(), nn.functional.cross_entropy, inputs, targets)


@pytest.mark.parametrize("make", [convolutional, transposed, lambda: tiny_snapshot((9, 8, 7), bias=True)])
@pytest.mark.parametrize("estimator", [LowRankPerturbation(), SubspacePerturbation(2)], ids=label)
def test_factors_are_the_direction_written_out_whatever_the_parameter(make: Any, estimator: Any) -> None:
    snapshot = make()
    directions = estimator.directions(snapshot, 3, torch.Generator().manual_seed(0))
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients])
    written = torch.cat([direction.written().flatten(1) for direction in directions], dim=1)
    expected = (written @ gradient)[:, None] * written
    guesses = estimator(snapshot, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(guesses.dense(snapshot)[1], expected)
    torch.testing.assert_close(guesses.inner_products(snapshot)[0][1].sum(0), expected @ gradient)


def test_large_layers_are_never_written_out() -> None:
    """Rank 1 with a bias is two terms of rows + columns numbers each."""
    snapshot = tiny_snapshot((40, 30, 20), bias=True)
    assert LowRankPerturbation()(snapshot, 5, torch.Generator()).numbers_per_guess() == 2 * (30 + 41) + 2 * (20 + 31)


@pytest.mark.parametrize("law", [signs, three_points])
@pytest.mark.parametrize(
    ("estimator", "snapshot"),
    [
        (LowRankPerturbation(), SQUARE),
        (LowRankPerturbation(layers="separate"), SQUARE),
        (LowRankPerturbation(), WITH_BIAS),
        (LowRankPerturbation(layers="separate"), WITH_BIAS),
        (LowRankPerturbation(rank=2), tiny_snapshot((1, 2, 2))),
    ],
    ids=["joint", "separate", "bias", "separate bias", "rank 2"],
)
def test_predictions_are_exact(estimator: Any, snapshot: Snapshot, law: Any) -> None:
    assert_predicted_exactly(estimator, snapshot, law)


@pytest.mark.parametrize("claimed", [LowRankPerturbation(rank=2), WeightPerturbation()], ids=label)
def test_another_rank_is_caught(claimed: Any) -> None:
    with pytest.raises(AssertionError, match="variance"):
        assert_predicted_exactly(LowRankPerturbation(), SQUARE, three_points, claimed)


def test_the_variance_of_a_matrix_by_itself() -> None:
    """P + 1 + 2 (rows + columns + 1)/r, which is P + 1 for r → ∞."""
    gaussian = theory.Law(3.0, 1.0)
    for rows, columns, rank in ((3, 5, 1), (7, 2, 4), (40, 30, 2)):
        variance = theory.alone(1.0, rows, columns, rank, gaussian, gaussian) - 1
        assert variance == pytest.approx(rows * columns + 1 + 2 * (rows + columns + 1) / rank)


def test_the_law_on_the_sphere_is_that_of_samples() -> None:
    """The moments of a noise vector of rank·rows entries that is not independent: to 4 standard errors, 3 %."""
    generator, gradient = (
        torch.Generator().manual_seed(0),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
    )
    sphere = fga.estimators.noise.ON_SPHERE
    left, right = (sphere.draw((100_000, size, 2), generator, gradient, 2) for size in gradient.shape)
    directions = left @ right.mT / 2**0.5
    products = torch.einsum("gui,ui->g", directions, gradient) ** 2 * directions.square().sum((1, 2))
    laws = [theory.Law(sphere.fourth(2 * size), sphere.pair(2 * size)) for size in gradient.shape]
    predicted = theory.alone(float(gradient.square().sum()), 3, 4, 2, *laws)
    error = float(products.std()) / len(products) ** 0.5
    assert abs(float(products.mean()) - predicted) < 4 * error
    assert 4 * error < 0.03 * predicted
    wrong = theory.alone(float(gradient.square().sum()), 3, 4, 2, *[theory.Law(3.0, 1.0)] * 2)
    assert abs(float(products.mean()) - wrong) > 4 * error


def test_outer_products_are_the_bracket() -> None:
    gradient = np.random.default_rng(0).normal(size=(3, 4))
    images = theory.images(gradient, 2)
    vectors = images.image(np.eye(len(images.factors)))
    found = np.einsum("n,nij,nkl->ijkl", images.factors, vectors, vectors)
    rows, columns = np.eye(3), np.eye(4)
    bracket = (
        np.einsum("px,kq,ky->pqxy", rows, gradient, gradient)
        + np.einsum("pk,xk,qy->pqxy", gradient, gradient, columns)
        + np.einsum("py,xq->pqxy", gradient, gradient)
    )
    np.testing.assert_allclose(found, bracket, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1.5, True, "2"])
def test_a_wrong_rank_is_refused(rank: Any) -> None:
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1, got"):
        LowRankPerturbation(rank=rank)


def test_without_the_root_of_the_rank_the_mean_is_r_times_the_gradient() -> None:
    """The slip of LOZO's code: check_unbiased finds it, and nothing against the right guess."""

    def without_root(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Any:
        made = LowRankPerturbation(rank=2)(snapshot, n_guesses, generator)
        return replace(made, layers=tuple(layer.scaled(torch.full((n_guesses,), 2.0)) for layer in made.layers))

    verdict = fga.check_unbiased(without_root, SQUARE, tolerance=0.1, max_guesses=2**14)
    assert verdict.outcome == "biased"
    assert fga.check_unbiased(LowRankPerturbation(rank=2), SQUARE, tolerance=0.1).outcome == "unbiased"
