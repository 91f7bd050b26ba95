"""Predictions equal what enumerating all values of the noise gives, and enumeration catches what is not as claimed."""

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
from fganalysis.capturing.tap import Layers
from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Backpropagation,
    DirectFeedback,
    Estimator,
    FeedbackAlignment,
    ForwardDirectFeedback,
    ForwardDirectFeedbackAdam,
    LocalLoss,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Subsampled,
    Upstream,
    WeightPerturbation,
    label,
    train_heads,
)
from fganalysis.estimators.directional import Slope
from fganalysis.estimators.noise import Rademacher
from fganalysis.results import schema
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.unit.predictions.claims import Array, Claims, Scaled, classification

SLOPES: tuple[Slope, ...] = ("example", "batch")
LAYERS: tuple[Layers, ...] = ("joint", "separate")
SWITCHES = [
    {"shared": shared, "slope": slope, "layers": layers}
    for shared, slope, layers in itertools.product((False, True), SLOPES, LAYERS)
]
DIRECTIONAL: list[Any] = [
    ActivityPerturbation(),
    ActivityPerturbation(active_only=True),
    Upstream(),
    OrthogonalUpstream(k=1),
    OrthogonalUpstream(k=1, which="bottom"),
    OrthogonalUpstream(k=1, exact=True),
    OrthogonalUpstream(k=1, iterations=1),
    OrthogonalUpstream(k="rank"),
    NewtonSchulzUpstream(k=1),
    PreconditionedUpstream(),
]
CLOSED_FORMS: list[Any] = [
    *(replace(estimator, **switches) for estimator in DIRECTIONAL for switches in SWITCHES),
    *(
        ActivationMixing(normalise=False, slope=slope, layers=layers)
        for slope, layers in itertools.product(SLOPES, LAYERS)
    ),
    *(WeightPerturbation(shared=True, layers=layers) for layers in LAYERS),
    Backpropagation(),
    FeedbackAlignment(),
    FeedbackAlignment(seed=3, scale=2.0),
    DirectFeedback(seed=1),
    ForwardDirectFeedback(rate=0.3, steps=1),
    LocalLoss(),
    LocalLoss(space="weight", seed=1),
    LocalLoss(target="local", seed=2),
]

# Eight noise entries at the activations of two examples, as many weights: 256 points of signs, 6561 of three values.
TANH = laws.tiny_snapshot((2, 2, 2), n_examples=2)
# Biases, a dead unit in each example, a Jacobian that is not square; of full rank, because what stands for a singular
# value of zero is LAPACK's choice and differs between two calls.
RELU = laws.tiny_snapshot((2, 3, 2), n_examples=2, seed=36, bias=True, activation=torch.nn.ReLU)
DEEP = laws.tiny_snapshot((1, 2, 2, 2), n_examples=2)


def exact_quantities(estimator: Estimator, snapshot: Snapshot, law: Callable[[], Enumeration]) -> dict[str, Array]:
    """What is reported of an estimator, (space, layer) or (layer,), from its enumerated mean and covariance."""
    found = exact_moments(estimator, snapshot, law)
    sizes = ([g.numel() for g in snapshot.gradients], [g.numel() for g in snapshot.weight_gradients])
    spaces = [(found.activation_mean, found.activation_covariance), (found.weight_mean, found.weight_covariance)]
    rows = []
    for (mean, covariance), gradient, parts in zip(spaces, laws.exact_gradient(snapshot), sizes, strict=True):
        if mean is None or covariance is None:
            rows.append(np.full((len(parts) + 1, 5), np.nan))
            continue
        terms = torch.stack([(mean - gradient) ** 2, covariance.diagonal(), mean**2, mean * gradient, gradient**2])
        sums = torch.stack([part.sum(1) for part in terms.split(parts, dim=1)])
        rows.append(torch.cat([sums, sums.sum(0, keepdim=True)]).numpy())
    squared_bias, variance, square, inner, truth = np.moveaxis(np.stack(rows), -1, 0)
    second = square + variance
    return {
        "bias": np.sqrt(squared_bias),
        "squared_bias": squared_bias,
        "relative_bias": np.sqrt(squared_bias / truth),
        "shrinkage": inner / truth,
        "directional_bias": 1 - inner**2 / (square * truth),
        "variance": variance,
        "mse": squared_bias + variance,
        "efficiency": inner**2 / (truth * second),
        "best_scale": inner / second,
    } | _exact_wang2025(snapshot, found.activation_mean, found.activation_covariance)


def _exact_wang2025(snapshot: Snapshot, mean: torch.Tensor | None, covariance: torch.Tensor | None) -> dict[str, Array]:
    bias, variance = np.full((2, len(snapshot.taps) + 1), np.nan)
    if mean is not None and covariance is not None:
        sizes = [gradient.numel() for gradient in snapshot.gradients]
        pairs = zip(snapshot.gradients, mean.split(sizes), covariance.diagonal().split(sizes), strict=True)
        for index, (gradient, own, spread) in enumerate(pairs):
            error = own.view_as(gradient) - gradient
            bias[index] = error.mean(0).norm()
            squares = (error**2 + spread.view_as(gradient)).mean(0)
            variance[index] = (squares - error.mean(0) ** 2).norm()
    return {"wang2025_bias": bias, "wang2025_variance": variance}


def assert_predicted_exactly(
    estimator: Any,
    snapshot: Snapshot,
    law: Callable[[], Enumeration],
    claimed: Any = None,
) -> None:
    """The prediction for what the estimator claims to be is what enumeration gives, to 1e-10 of each scale."""
    stated = claimed or estimator
    if hasattr(stated, "noise"):
        stated = replace(stated, noise=law())
    predicted = fga.predict(snapshot, stated)
    scale = float(predicted["gradient_norm"].max())
    for name, expected in exact_quantities(estimator, snapshot, law).items():
        size = {schema.GRADIENT_UNITS: scale, schema.SQUARED_UNITS: scale**2, "1": 1.0}[predicted[name].units]
        np.testing.assert_allclose(
            predicted[name].values, expected, rtol=1e-10, atol=1e-10 * size, err_msg=f"{name} of {label(stated)}"
        )


@pytest.mark.parametrize("estimator", CLOSED_FORMS, ids=label)
@pytest.mark.parametrize("law", [signs, three_points])
def test_prediction_is_exact(estimator: Estimator, law: Callable[[], Enumeration]) -> None:
    assert_predicted_exactly(estimator, TANH, law)


@pytest.mark.parametrize("estimator", CLOSED_FORMS, ids=label)
@pytest.mark.parametrize("snapshot", [RELU, DEEP], ids=["relu", "deep"])
def test_prediction_is_exact_on_other_networks(estimator: Estimator, snapshot: Snapshot) -> None:
    assert_predicted_exactly(estimator, snapshot, signs)


def test_the_relu_network_has_dead_units_and_jacobians_of_full_rank() -> None:
    (jacobian,) = RELU.upstream
    assert torch.all((jacobian.derivative != 0).sum(1) == 2)
    assert not torch.equal(*jacobian.derivative)


@pytest.mark.parametrize("layers", LAYERS)
def test_weight_directions_of_every_example_are_predicted_exactly(layers: Layers) -> None:
    estimator = WeightPerturbation(shared=False, layers=layers)
    assert_predicted_exactly(estimator, laws.tiny_snapshot((1, 2, 2), n_examples=2), signs)
    assert_predicted_exactly(estimator, laws.tiny_snapshot((2, 2, 2), n_examples=1), three_points)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_mean_over_tangents_is_predicted_exactly(layers: Layers) -> None:
    assert_predicted_exactly(MultiTangent(k=2, layers=layers), laws.tiny_snapshot((1, 2, 2), n_examples=2), signs)
    assert_predicted_exactly(MultiTangent(k=2, layers=layers), laws.tiny_snapshot((1, 1, 3), 2), three_points)


def learned(snapshot: Snapshot, **settings: Any) -> ForwardDirectFeedback:
    """FDFA with a state: matrices as they are after two steps."""
    state, generator = ForwardDirectFeedback(rate=0.4, **settings), torch.Generator().manual_seed(5)
    return state.advanced(snapshot, generator).advanced(snapshot, generator)


def test_feedback_and_heads_that_were_learned_are_predicted_exactly() -> None:
    for snapshot in (TANH, RELU, DEEP):
        assert_predicted_exactly(learned(snapshot), snapshot, signs)
        assert_predicted_exactly(replace(learned(snapshot), rate=0.1, steps=1), snapshot, signs)
        given = DirectFeedback(feedback=DirectFeedback(seed=7).matrices(snapshot))
        assert_predicted_exactly(given, snapshot, signs)
        for settings in ({}, {"target": "local", "mode": "frozen"}, {"space": "weight"}, {"target": "local"}):
            head = train_heads(LocalLoss(**({"mode": "trained", "rate": 0.1} | settings)), snapshot, 3)
            assert_predicted_exactly(head, snapshot, signs)
    for snapshot in (TANH, RELU):
        adam = ForwardDirectFeedbackAdam(rate=0.1).advanced(snapshot, torch.Generator().manual_seed(1))
        assert_predicted_exactly(adam, snapshot, signs)


@pytest.mark.parametrize(
    ("being", "claimed"),
    [
        (DirectFeedback(seed=1), DirectFeedback(seed=2)),
        (FeedbackAlignment(), DirectFeedback()),
        (ForwardDirectFeedback(rate=0.3, steps=1), ForwardDirectFeedback(rate=0.303, steps=1)),
        (LocalLoss(), LocalLoss(seed=1)),
        (LocalLoss(space="weight"), LocalLoss()),
    ],
    ids=lambda value: label(value),
)
def test_enumeration_catches_other_feedback_and_heads(being: Any, claimed: Any) -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_predicted_exactly(being, DEEP, signs, claimed)


def test_what_is_never_random_has_a_known_cosine() -> None:
    snapshot = classification((6, 8, 7, 4), n_examples=5)
    for estimator in (FeedbackAlignment(), DirectFeedback(), LocalLoss(space="weight"), learned(snapshot)):
        measured, predicted = fga.sample(snapshot, estimator, n_guesses=2), fga.predict(snapshot, estimator)
        for name in ("cosine", "descent_probability"):
            np.testing.assert_allclose(predicted[name], measured[name], atol=1e-5, err_msg=label(estimator))
    nothing = fga.predict(snapshot, ForwardDirectFeedback())["cosine"].sel(layer=["0", "2"])
    assert not nothing.any()


def mean_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.sum(1) - targets).square().mean()


@pytest.mark.parametrize(
    "estimator",
    [
        LocalLoss(mode="redrawn"),
        LocalLoss("mlp", width=4),
        LocalLoss(mode="trained"),
        ForwardDirectFeedbackAdam(steps=1),
        ForwardDirectFeedback().initialised(TANH, histories=2),
        Subsampled(ActivityPerturbation(shared=True, slope="batch"), 1),
        Subsampled(LocalLoss(space="weight"), 1),
        Subsampled(ForwardDirectFeedback(steps=1), 1),
        Subsampled(ActivationMixing(), 1),
        Subsampled(Subsampled(WeightPerturbation(), 1), 1),
        MultiTangent(k=2, combine="orthogonal", noise=Rademacher()),
    ],
    ids=label,
)
def test_where_there_is_no_closed_form_the_prediction_is_nan(estimator: Estimator) -> None:
    predicted = fga.predict(TANH, estimator)
    assert all(array.isnull().all() for name, array in predicted.items() if name != "gradient_norm")


def test_a_head_under_another_loss_has_no_closed_form() -> None:
    regression = fga.capture(TANH.network, mean_square, TANH.inputs, TANH.targets)
    assert np.isnan(fga.predict(regression, LocalLoss())["mse"]).all()
    far = fga.capture(TANH.network, mean_square, TANH.inputs, TANH.targets + 9)
    assert np.isnan(fga.predict(far, LocalLoss(target="local"))["mse"]).all()


WRONG = {
    "scaled by 1.01": Claims(Scaled(ActivityPerturbation()), ActivityPerturbation()),
    "noise shared": Claims(ActivityPerturbation(shared=True), ActivityPerturbation()),
    "one direction more": Claims(OrthogonalUpstream(k=2), OrthogonalUpstream(k=1)),
    "slope of the batch": Claims(ActivityPerturbation(slope="batch"), ActivityPerturbation()),
    "layers joint": Claims(ActivityPerturbation(), ActivityPerturbation(layers="separate")),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_enumeration_catches_what_is_not_as_claimed(wrong: Claims) -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_predicted_exactly(wrong.being, TANH, signs, wrong.claimed)


def test_enumeration_catches_a_wrong_fourth_moment() -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_predicted_exactly(ActivityPerturbation(), TANH, lambda: replace(signs(), fourth_moment=3.0))
