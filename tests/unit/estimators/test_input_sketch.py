"""The input sketch, by enumeration of its columns, and its closed form on layers of any kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import InputSketch, RowSketch
from fganalysis.estimators.noise import GAUSSIAN
from fganalysis.estimators.sketches.sampled_entry import SampledEntry
from fganalysis.testing import exact_moments, signs, three_points
from tests import laws
from tests.enumerated import Law, axes
from tests.enumerated import signs as all_signs
from tests.enumerated import three_points as three
from tests.law_claims import PREDICTED, UNBIASED, Row
from tests.refusals import refusal
from tests.unit.estimators.at_weights import assert_predicted_at_weights
from tests.unit.predictions import tiny_networks
from theory import input_sketch

CLAIMS = [
    Row(InputSketch(), (*UNBIASED, PREDICTED)),
    Row(InputSketch(columns=2, noise=GAUSSIAN), (*UNBIASED, PREDICTED)),
    Row(InputSketch(shared=False), (*UNBIASED, PREDICTED)),
    Row(InputSketch(noise=SampledEntry()), (*UNBIASED, PREDICTED)),
]
SNAPSHOT = laws.tiny_snapshot((3, 2, 2), n_examples=2, bias=True)


@pytest.mark.parametrize("law", [all_signs, three, axes])
def test_variance_is_that_of_the_enumeration(law: Callable[[int], Law]) -> None:
    rng = np.random.default_rng(0)
    g, x, points = rng.normal(size=(2, 2)), rng.normal(size=(2, 3)), law(3)
    exact = g.T @ x
    guesses = np.einsum("ui,ni,nj->nuj", exact, points.points, points.points)
    np.testing.assert_allclose(np.einsum("n,nui->ui", points.weights, guesses), exact, rtol=0, atol=1e-12)
    variance = float(np.einsum("n,nui->", points.weights, (guesses - exact) ** 2))
    predicted = input_sketch.variance(exact, 4, points.fourth, points.pair)
    np.testing.assert_allclose(4 * predicted, variance, rtol=1e-10)
    by_row = [input_sketch.variance(np.outer(*row), 4, points.fourth, points.pair) for row in zip(g, x, strict=True)]
    np.testing.assert_allclose(input_sketch.variance_by_row(g, x, 4, points.fourth, points.pair), sum(by_row))
    for wrong in (
        input_sketch.variance(exact, 1, points.fourth + 1, points.pair),
        input_sketch.variance(np.pad(exact, ((0, 0), (0, 1))), 1, points.fourth, points.pair + 0.01),
    ):
        assert abs(wrong / variance - 1) > 0.01


def test_the_formulas_in_print() -> None:
    """(d − 1)‖G‖²/k for signs and for sampled inputs, (d + 1)‖G‖²/k for Gaussian columns, which is FLORA's."""
    gradient = np.random.default_rng(0).normal(size=(2, 5))
    square = float(np.sum(gradient**2))
    law = SampledEntry()
    np.testing.assert_allclose(input_sketch.variance(gradient, 3, 1.0), 4 * square / 3)
    np.testing.assert_allclose(input_sketch.variance(gradient, 3, law.fourth(5), law.pair(5)), 4 * square / 3)
    np.testing.assert_allclose(input_sketch.variance(gradient, 3, 3.0), 6 * square / 3)


@pytest.mark.parametrize("estimator", [InputSketch(), InputSketch(shared=False)])
@pytest.mark.parametrize(
    "make",
    [tiny_networks.tokens, tiny_networks.convolution, tiny_networks.called_twice, tiny_networks.tied, lambda: SNAPSHOT],
)
def test_prediction_is_exact(estimator: InputSketch, make: Callable[[], Snapshot]) -> None:
    assert_predicted_at_weights(estimator, make(), signs)


def test_prediction_is_exact_for_gaussian_moments_and_several_columns() -> None:
    assert_predicted_at_weights(InputSketch(columns=2), SNAPSHOT, three_points)
    assert_predicted_at_weights(InputSketch(columns=2, shared=False), tiny_networks.layer_norm(), signs)


def test_a_sampled_entry_is_an_axis_with_either_sign() -> None:
    """Eight equally likely vectors, 16 000 draws: a count within 4.5 standard deviations (188) of 2000."""
    noise = SampledEntry().draw((16_000, 4), torch.Generator().manual_seed(0), torch.ones(1, dtype=torch.float64))
    counts = Counter(tuple(row) for row in noise.tolist())
    assert set(counts) == {tuple(row) for row in axes(4).points.tolist()}
    assert max(abs(count - 2000) for count in counts.values()) < 188


def test_rows_may_be_sampled_by_the_same_law() -> None:
    """A row sketch with it keeps the one row that it draws, scaled by their number, of each layer."""
    found = RowSketch(noise=SampledEntry())(SNAPSHOT, 6, torch.Generator().manual_seed(0)).layers[0].written()
    rows = [2 * torch.outer(g, x) for g, x in zip(SNAPSHOT.gradients[0], SNAPSHOT.taps[0].inputs, strict=True)]
    for guess in found[:, :, :-1]:
        assert any(torch.allclose(guess, row[:, :-1], rtol=1e-10) for row in rows)


def test_check_unbiased_says_so() -> None:
    snapshot = laws.tiny_snapshot((4, 6, 3), n_examples=8)
    verdict = fga.check_unbiased(InputSketch(columns=4), snapshot)
    assert verdict.outcome == "unbiased", str(verdict)


def test_a_sketch_of_one_input_is_exact_with_signs() -> None:
    snapshot = tiny_networks.called_twice()
    assert float(exact_moments(InputSketch(), snapshot, signs).weight_covariance.abs().max()) < 1e-20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InputSketch(columns=1.5), "columns must be"),  # type: ignore[arg-type]
        (lambda: InputSketch(noise="signs"), "noise must be"),  # type: ignore[arg-type]
        (lambda: InputSketch(shared=1), "shared must be"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Any], words: str) -> None:
    assert words in (refusal(make) or "")


def test_the_formula_refuses_no_column() -> None:
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        input_sketch.variance(np.ones((2, 2)), 0, 1.0)
