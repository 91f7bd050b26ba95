"""Row sampling, by enumeration of every draw, and its closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import RowSampling
from tests import laws
from tests.law_claims import ALWAYS, PREDICTED, Row
from tests.refusals import refusal
from tests.unit.predictions import tiny_networks
from theory import row_sampling

# Its draws have probabilities, so that no law of tests/laws.py can enumerate them: they are enumerated below. Of the
# one example on which units are permuted it is exact.
CLAIMS = [
    Row(RowSampling(), (*ALWAYS, "units", PREDICTED)),
    Row(RowSampling(count=2, by="uniform", keep=1), (*ALWAYS, "units", PREDICTED)),
]
SNAPSHOT = laws.tiny_snapshot((3, 2, 2), n_examples=4, bias=True)


@dataclass(frozen=True)
class EveryDraw:
    """Each sequence of rows once, in turn, the same for every layer; the probabilities of each layer's are kept."""

    weights: list[Tensor] = field(default_factory=list)

    def of(self, probabilities: Tensor, n_guesses: int, count: int, generator: torch.Generator) -> Tensor:
        sequences = torch.tensor(list(itertools.product(range(len(probabilities)), repeat=count)))
        assert len(sequences) <= n_guesses
        weights = probabilities[sequences].prod(1)
        padding = n_guesses - len(sequences)
        self.weights.append(torch.nn.functional.pad(weights, (0, padding)))
        return torch.nn.functional.pad(sequences, (0, 0, 0, padding))


def moments(estimator: RowSampling, snapshot: Snapshot) -> list[tuple[Tensor, float]]:
    """Mean (unit, input) and total variance of each layer."""
    every = EveryDraw()
    rows = max(len(tap.outputs) for tap in snapshot.taps) * 2 - estimator.keep
    guesses = replace(estimator, draws=every)(snapshot, rows**estimator.count, torch.Generator())
    found = []
    for weights, layer in zip(every.weights, guesses.layers, strict=True):
        written = layer.written()
        mean = torch.einsum("n,nui->ui", weights, written)
        found.append((mean, float(torch.einsum("n,nui->", weights, (written - mean) ** 2))))
    return found


@pytest.mark.parametrize("by", ["norm", "uniform"])
@pytest.mark.parametrize(("count", "keep"), [(1, 0), (2, 0), (1, 2), (2, 1)])
@pytest.mark.parametrize("make", [lambda: SNAPSHOT, tiny_networks.tokens, tiny_networks.called_twice])
def test_mean_and_variance_over_every_draw_are_exact(by: Any, count: int, keep: int, make: Any) -> None:
    snapshot = make()
    estimator = RowSampling(count, by, keep if snapshot is SNAPSHOT else min(keep, 1))
    predicted = fga.predict(snapshot, estimator)["variance"].sel(space="weight").values
    scale = sum(float(gradient.square().sum()) for gradient in snapshot.weight_gradients)
    found = moments(estimator, snapshot)
    for (mean, variance), exact, expected in zip(found, snapshot.weight_gradients, predicted[:-1], strict=True):
        torch.testing.assert_close(mean, exact, rtol=0, atol=1e-12)
        np.testing.assert_allclose(expected, variance, rtol=1e-10, atol=1e-10 * scale)


def test_a_wrong_number_of_rows_is_caught() -> None:
    """And keeping a row, and another probability, change the variance: the enumeration above can see them."""
    layers = [moments(e, SNAPSHOT)[0][1] for e in (RowSampling(1), RowSampling(2), RowSampling(1, "uniform"))]
    kept = moments(RowSampling(1, keep=1), SNAPSHOT)[0][1]
    assert min(abs(other / layers[0] - 1) for other in (*layers[1:], kept)) > 0.01


def test_the_probabilities_of_least_variance_are_those_of_the_norms() -> None:
    rng = np.random.default_rng(0)
    g, x = rng.normal(size=(6, 2)), rng.normal(size=(6, 3))
    best = row_sampling.sizes(g, x) / row_sampling.sizes(g, x).sum()
    least = row_sampling.variance(g, x, best, 2)
    np.testing.assert_allclose(row_sampling.least_variance(g, x, 2), least, rtol=1e-12)
    for _ in range(20):
        p = best * np.exp(0.1 * rng.normal(size=6))
        assert row_sampling.variance(g, x, p / p.sum(), 2) > least


def test_rows_are_drawn_with_their_probabilities() -> None:
    """20 000 draws: each count within 4.5 standard deviations of its expectation; rows of none are never drawn."""
    probabilities = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0], dtype=torch.float64)
    drawn = RowSampling().draws.of(probabilities, 5000, 4, torch.Generator().manual_seed(0)).flatten()
    expected = len(drawn) * probabilities
    spread = (expected * (1 - probabilities)).sqrt()
    assert bool(((drawn.bincount(minlength=6) - expected).abs() <= 4.5 * spread).all())


def test_all_rows_kept_are_the_gradient() -> None:
    found = RowSampling(keep=9)(SNAPSHOT, 2, torch.Generator().manual_seed(0)).dense(SNAPSHOT)[1]
    torch.testing.assert_close(found, laws.exact_gradient(SNAPSHOT)[1].expand(2, -1), rtol=0, atol=1e-12)
    assert float(fga.predict(SNAPSHOT, RowSampling(keep=9))["variance"].sel(space="weight", layer="all")) == 0


def test_a_gradient_of_zero_is_guessed_as_zero() -> None:
    """A layer whose units are all dead: no row is to be preferred, and none divides by zero."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)).double()
    torch.nn.init.constant_(network[0].bias, -50.0)
    inputs = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 1]))
    first, last = RowSampling(count=2)(snapshot, 3, torch.Generator().manual_seed(0)).layers
    assert not first.written().any() and last.written().isfinite().all()


def test_check_unbiased_says_so() -> None:
    snapshot = laws.tiny_snapshot((4, 6, 3), n_examples=8)
    verdict = fga.check_unbiased(RowSampling(count=2), snapshot)
    assert verdict.outcome == "unbiased", str(verdict)


@dataclass(frozen=True)
class Outside:
    def of(self, probabilities: Tensor, n_guesses: int, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((n_guesses, count), len(probabilities))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RowSampling(count=0), "count must be"),
        (lambda: RowSampling(by="size"), "by must be"),  # type: ignore[arg-type]
        (lambda: RowSampling(keep=-1), "keep must be"),
        (lambda: RowSampling(draws=3), "draws must be"),  # type: ignore[arg-type]
        (lambda: RowSampling(draws=Outside())(SNAPSHOT, 1, torch.Generator()), "from 0 to 3"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Any], words: str) -> None:
    assert words in (refusal(make) or "")


def test_the_formula_refuses_no_draw_and_a_row_that_is_never_drawn() -> None:
    ones = np.ones((2, 1))
    for call in (lambda: row_sampling.variance(ones, ones, np.full(2, 0.5), 0), lambda: _least(ones)):
        with pytest.raises(ValueError, match="count must be at least 1, got 0"):
            call()
    with pytest.raises(ValueError, match="must have a probability above zero"):
        row_sampling.variance(ones, ones, np.array([1.0, 0.0]), 1)


def _least(ones: Any) -> float:
    return row_sampling.least_variance(ones, ones, 0)
