"""The row sketch, by enumeration of its probes, and its closed form on layers of any kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import RowSketch
from fganalysis.estimators.noise import RADEMACHER, Sphere
from fganalysis.testing import exact_moments, signs, three_points
from tests import laws
from tests.enumerated import Array, Law, axes
from tests.enumerated import signs as all_signs
from tests.enumerated import three_points as three
from tests.law_claims import PREDICTED, UNBIASED, Row
from tests.refusals import refusal
from tests.unit.estimators.at_weights import assert_predicted_at_weights
from tests.unit.predictions import tiny_networks
from theory import row_sketch

CLAIMS = [
    Row(RowSketch(), (*UNBIASED, PREDICTED)),
    Row(RowSketch(probes=2, noise=RADEMACHER), (*UNBIASED, PREDICTED)),
    Row(RowSketch(mode="per_channel", within="example"), (*UNBIASED, PREDICTED)),
]
SNAPSHOT = laws.tiny_snapshot((2, 2, 2), n_examples=3, bias=True)


def every_guess(gradients: Array, inputs: Array, law: Law) -> Array:
    """Ĝ of one probe at every point, (point, unit, input), of (example, row, unit) and (example, row, input)."""
    return np.einsum("np,epu,nq,eqi->nui", law.points, gradients, law.points, inputs, optimize=True)


@pytest.mark.parametrize("law", [all_signs, three, axes])
@pytest.mark.parametrize(("examples", "rows"), [(1, 4), (2, 3), (3, 1)])
def test_variance_is_that_of_the_enumeration(law: Callable[[int], Law], examples: int, rows: int) -> None:
    rng = np.random.default_rng(examples)
    g, x, points = rng.normal(size=(examples, rows, 2)), rng.normal(size=(examples, rows, 3)), law(rows)
    guesses = every_guess(g, x, points)
    exact = np.einsum("epu,epi->ui", g, x)
    np.testing.assert_allclose(np.einsum("n,nui->ui", points.weights, guesses), exact, rtol=0, atol=1e-12)
    variance = float(np.einsum("n,nui->", points.weights, (guesses - exact) ** 2))
    for probes in (1, 5):
        predicted = row_sketch.variance_by_example(g, x, probes, points.fourth, points.pair)
        np.testing.assert_allclose(predicted, variance / probes, rtol=1e-10, atol=1e-12)
    if variance > 1e-9:
        # Another law, one probe more, and examples that mix are caught.
        wrong = [
            row_sketch.variance_by_example(g, x, 1, points.fourth + 1, points.pair),
            row_sketch.variance_by_example(g, x, 2, points.fourth, points.pair),
        ]
        if examples > 1:
            mixed = [part.reshape(-1, part.shape[2]) for part in (g, x)]
            wrong.append(row_sketch.variance(mixed[0], mixed[1], 1, points.fourth, points.pair))
        assert min(abs(value / variance - 1) for value in wrong) > 0.01


def test_the_formula_in_print() -> None:
    """(1/r)[tr K ‖g‖² + ‖G‖² + (κ − 3) ∑ K_rr ‖g_r‖²]."""
    rng = np.random.default_rng(0)
    g, x = rng.normal(size=(5, 2)), rng.normal(size=(5, 3))
    kernel, squares = x @ x.T, np.sum(g**2, axis=1)
    for kappa in (1.0, 3.0, 4.5):
        printed = np.trace(kernel) * squares.sum() + np.sum((g.T @ x) ** 2)
        printed += (kappa - 3) * np.sum(np.diagonal(kernel) * squares)
        np.testing.assert_allclose(row_sketch.variance(g, x, 3, kappa), printed / 3, rtol=1e-12)


@pytest.mark.parametrize("estimator", [RowSketch(), RowSketch(within="example"), RowSketch(mode="per_channel")])
@pytest.mark.parametrize(
    "make",
    [tiny_networks.tokens, tiny_networks.convolution, tiny_networks.called_twice, tiny_networks.tied, lambda: SNAPSHOT],
)
def test_prediction_is_exact(estimator: RowSketch, make: Callable[[], Snapshot]) -> None:
    assert_predicted_at_weights(estimator, make(), signs)


def test_prediction_is_exact_for_gaussian_moments_and_several_probes() -> None:
    assert_predicted_at_weights(RowSketch(probes=2, within="example"), tiny_networks.tokens(), three_points)
    assert_predicted_at_weights(RowSketch(), SNAPSHOT, three_points)
    assert_predicted_at_weights(RowSketch(), tiny_networks.interacting(), signs)


def test_a_channel_with_probes_of_its_own_changes_covariances_alone() -> None:
    dense, apart = (
        exact_moments(replace(RowSketch(), mode=mode), SNAPSHOT, signs).weight_covariance
        for mode in ("dense", "per_channel")
    )
    torch.testing.assert_close(apart.trace(), dense.trace(), rtol=1e-10, atol=0)
    assert float((apart - dense).norm()) > 0.1 * float(dense.norm())


def convolution(**settings: Any) -> Snapshot:
    """Two channels, four places and a kernel of two."""
    network = torch.nn.Sequential(torch.nn.Conv1d(2, 1, 2, **settings), torch.nn.Flatten()).double()
    inputs = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1]))


@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"stride": 2}, {"dilation": 2}])
@pytest.mark.parametrize(
    ("estimator", "coordinates"),
    [
        (RowSketch(), 8),
        (RowSketch(within="example"), 4),
        (RowSketch(mode="per_channel", within="example"), 8),
        (RowSketch(probes=2, within="example"), 8),
    ],
)
def test_a_convolution_is_sketched_at_the_places_of_its_input(
    estimator: RowSketch, coordinates: int, settings: dict[str, int]
) -> None:
    snapshot = convolution(**settings)
    assert exact_moments(estimator, snapshot, signs).n_points == 2**coordinates
    assert_predicted_at_weights(estimator, snapshot, signs)


def test_a_convolution_of_images_is_predicted() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2, padding=(1, 0)), torch.nn.Flatten()).double()
    inputs = torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 2]))
    assert_predicted_at_weights(RowSketch(within="example"), snapshot, signs)
    assert_predicted_at_weights(RowSketch(within="example"), snapshot, three_points)


def test_signs_of_a_row_an_example_are_no_error_within_examples() -> None:
    guesses = RowSketch(noise=RADEMACHER, within="example")(SNAPSHOT, 3, torch.Generator().manual_seed(0))
    exact = laws.exact_gradient(SNAPSHOT)[1]
    torch.testing.assert_close(guesses.dense(SNAPSHOT)[1], exact.expand(3, -1), rtol=0, atol=1e-12)


def test_biases_and_layers_that_are_no_matrix_are_exact() -> None:
    for snapshot in (SNAPSHOT, tiny_networks.layer_norm(), tiny_networks.untapped()):
        guesses = RowSketch()(snapshot, 4, torch.Generator().manual_seed(0)).layers
        for layer, gradient, written in zip(snapshot.weights, snapshot.weight_gradients, guesses, strict=True):
            exact, found = layer.by_parameter(gradient), layer.by_parameter(written.written())
            for name, part in exact.items():
                same = all(torch.allclose(guess, part, rtol=1e-12) for guess in found[name])
                is_matrix = part.ndim == 2 and not name.endswith("bias") and layer.name != "untapped"
                assert same != is_matrix, name


def test_check_unbiased_says_so() -> None:
    snapshot = laws.tiny_snapshot((4, 6, 3), n_examples=8)
    verdict = fga.check_unbiased(RowSketch(probes=4), snapshot)
    assert verdict.outcome == "unbiased", str(verdict)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RowSketch(probes=0), "probes must be"),
        (lambda: RowSketch(noise=3), "noise must be"),  # type: ignore[arg-type]
        (lambda: RowSketch(mode="sparse"), "mode must be"),  # type: ignore[arg-type]
        (lambda: RowSketch(within="layer"), "within must be"),  # type: ignore[arg-type]
        (lambda: RowSketch(within="example")(tiny_networks.packed(), 1, torch.Generator()), "use within='batch'"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Any], words: str) -> None:
    assert words in (refusal(make) or "")


def test_the_formula_refuses_no_probe_and_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        row_sketch.variance(np.ones((2, 1)), np.ones((2, 1)), 0, 1.0)
    with pytest.raises(ValueError, match="must have the same examples and rows"):
        row_sketch.variance(np.ones((2, 1)), np.ones((3, 1)), 1, 1.0)


def test_the_law_of_the_noise_counts() -> None:
    """On the sphere the pair moment is below one."""
    variances = [
        float(fga.predict(SNAPSHOT, RowSketch(noise=noise))["variance"].sel(space="weight", layer="all"))
        for noise in (Sphere(), RADEMACHER, RowSketch().noise)
    ]
    assert variances[1] < variances[0] < variances[2]
    assert len(set(itertools.chain(variances))) == 3
