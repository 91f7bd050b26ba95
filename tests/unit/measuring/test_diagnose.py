"""Sampler, estimators and theory agree: exactly where noise can be enumerated, within errors where it is sampled."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis import predictions
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    Estimator,
    FeedbackAlignment,
    ForwardDirectFeedback,
    ForwardDirectFeedbackAdam,
    LocalLoss,
    Minibatch,
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
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, Rademacher, Sphere
from fganalysis.measuring.joining import join
from fganalysis.predictions import ClosedForm, closed_form_of
from fganalysis.results import schema, store
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import law_claims, laws

Array = NDArray[np.float64]
EXACT = (
    "bias",
    "squared_bias",
    "relative_bias",
    "shrinkage",
    "directional_bias",
    "variance",
    "mse",
    "efficiency",
    "best_scale",
    "wang2025_bias",
    "wang2025_variance",
)
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


@dataclass(frozen=True)
class Scaled:
    """A negative control: every guess of another estimator 1 % too long."""

    of: Any
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        one = replace(self.of, noise=self.noise) if hasattr(self.of, "noise") else self.of
        estimates = one(snapshot, n_guesses, generator)
        assert isinstance(estimates, ActivationEstimates)
        return ActivationEstimates(tuple(1.01 * guess for guess in estimates.guesses))


@dataclass(frozen=True)
class Claims:
    """A negative control: guesses like ``being``, asks for the prediction of ``claimed``."""

    being: Estimator
    claimed: Estimator

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        return self.being(snapshot, n_guesses, generator)


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


SAMPLED: list[Estimator] = [
    *law_claims.claiming(law_claims.PREDICTED),
    ActivityPerturbation(noise=Sphere()),
    ActivityPerturbation(slope="batch"),
    WeightPerturbation(noise=Rademacher()),
    Upstream(noise=Rademacher(), shared=True),
    Upstream(slope="batch", layers="separate"),
    OrthogonalUpstream(k=5, noise=Sphere()),
    NewtonSchulzUpstream(k=5, slope="batch"),
    PreconditionedUpstream(noise=Rademacher()),
    ActivationMixing(normalise=False, noise=Rademacher(), slope="batch"),
    MultiTangent(k=4),
    MultiTangent(k=4, combine="orthogonal"),
    Minibatch(size=4),
    Averaged(ActivityPerturbation(), 4),
]
# Of 2000 comparisons, many of them correlated, chance alone puts one above 4.5 in a hundred seeds; the seed is fixed.
HIGHEST_Z = 4.5


def classification(sizes: tuple[int, ...], n_examples: int, seed: int = 0, step: int = 0) -> Snapshot:
    """A ReLU MLP with biases in single precision on Gaussian inputs."""
    network = fga.networks.mlp(list(sizes), bias=True, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(n_examples, sizes[0], generator=generator)
    targets = torch.randint(0, sizes[-1], (n_examples,), generator=generator)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets, step=step)


def scores(tree: xr.DataTree) -> Array:
    """All |z| of a diagnosis."""
    found = np.concatenate([array.values.ravel() for array in fga.z_scores(tree).values()])
    return np.abs(found[~np.isnan(found)])


def test_measurement_agrees_with_prediction_at_width_32() -> None:
    """Sees a relative error of about a twentieth in a variance: 4.5 standard errors at 2048 guesses and 16 examples."""
    tree = fga.diagnose(classification((10, 32, 32, 32, 8), n_examples=16), SAMPLED, n_guesses=2048, seed=1)
    z = scores(tree)
    assert len(z) > 1500
    assert z.max() < HIGHEST_Z
    assert 0.7 < np.sqrt((z**2).mean()) < 1.3
    compared = fga.z_scores(tree).notnull().any([schema.STEP, schema.LAYER])
    for name in ("squared_bias", "shrinkage", "variance", "mse", "efficiency", "best_scale"):
        known = compared[name].sum(schema.SPACE).to_series()
        expected = [1 if isinstance(estimator, WeightPerturbation | MultiTangent) else 2 for estimator in SAMPLED]
        assert list(known) == expected, f"{name} is not compared for every estimator"


PARTS_AND_FEEDBACK: list[Any] = [
    FeedbackAlignment(),
    DirectFeedback(),
    ForwardDirectFeedback(rate=0.3, steps=4),
    ForwardDirectFeedback(rate=0.2, steps=3, noise=Sphere()),
    LocalLoss(),
    LocalLoss(space="weight"),
    Averaged(ActivationMixing(), 2),
    Averaged(WeightPerturbation(), 4),
    Subsampled(ActivityPerturbation(), 4),
    Subsampled(Averaged(Upstream(), 2), 4),
    Subsampled(DirectFeedback(), 4),
    Subsampled(LocalLoss(), 4),
    Subsampled(WeightPerturbation(), 4),
    Subsampled(WeightPerturbation(shared=False, noise=Rademacher()), 4),
    Subsampled(MultiTangent(k=3, noise=Rademacher(), layers="separate"), 4),
    Subsampled(MultiTangent(k=3, combine="orthogonal"), 4),
    Subsampled(Averaged(WeightPerturbation(), 2), 4),
    Averaged(Subsampled(WeightPerturbation(), 4), 2),
]


def test_measurement_agrees_with_prediction_for_feedback_and_parts_of_the_batch() -> None:
    """4.5 standard errors at 1024 guesses and 8 examples; each quantity is compared wherever there is a guess."""
    snapshot = classification((6, 12, 10, 4), n_examples=8)
    tree = fga.diagnose(snapshot, PARTS_AND_FEEDBACK, n_guesses=1024, seed=0)
    assert scores(tree).max() < HIGHEST_Z
    compared = fga.z_scores(tree).notnull().any([schema.STEP, schema.LAYER])
    for name in ("squared_bias", "shrinkage", "variance", "mse", "efficiency", "best_scale"):
        known = compared[name].sum(schema.SPACE).to_series()
        at_weights = ["WeightP" in str(one) or "MultiT" in str(one) for one in PARTS_AND_FEEDBACK]
        assert list(known) == [1 if only else 2 for only in at_weights], name


SEPARATE = ActivityPerturbation(layers="separate")
CAUGHT = {
    "scaled by 1.01": (Claims(Scaled(SEPARATE), SEPARATE), "shrinkage"),
    "noise shared": (Claims(replace(SEPARATE, shared=True), SEPARATE), "variance"),
    "wrong fourth moment": (Claims(replace(SEPARATE, noise=Rademacher()), SEPARATE), "variance"),
    "an exact guess scaled by 1.01": (Claims(Scaled(Backpropagation()), Backpropagation()), "shrinkage"),
}


@pytest.mark.parametrize(("wrong", "quantity"), CAUGHT.values(), ids=CAUGHT)
def test_sampling_catches_what_is_not_as_claimed(wrong: Claims, quantity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_claim = ClosedForm(lambda snapshot, claims: closed_form_of(claims.claimed).guess(snapshot, claims.claimed))
    monkeypatch.setitem(predictions.CLOSED_FORMS, Claims, of_the_claim)
    # 1 % of a mean slope is nine of its standard errors here, and 2/(n + 1) of a variance a hundred.
    snapshot = classification((6, 8, 4), n_examples=32)
    right = fga.diagnose(snapshot, [wrong.claimed], n_guesses=16384)
    assert scores(right).max() < HIGHEST_Z
    caught = fga.z_scores(fga.diagnose(snapshot, [wrong], n_guesses=16384))[quantity]
    assert np.abs(caught).max() > HIGHEST_Z


NODES = ("measured", "predicted", "subspace")
SMALL = classification((4, 5, 3), n_examples=6)


def no_closed_form(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
    """A stranger's estimator."""
    return ActivityPerturbation()(snapshot, n_guesses, generator)


def test_an_unknown_estimator_is_predicted_as_nan() -> None:
    predicted = fga.predict(SMALL, no_closed_form)
    assert set(predicted.data_vars) == {*schema.QUANTITIES, *schema.EXACT}
    for name, array in predicted.items():
        assert bool(array.isnull().all()) == (name != "gradient_norm"), name
    tree = fga.diagnose(SMALL, [no_closed_form, "activity"], n_guesses=64)
    assert tree["predicted"]["estimator"].to_numpy().tolist() == ["no_closed_form", "activity"]
    assert np.isnan(tree["predicted"]["mse"].sel(estimator="no_closed_form")).all()
    assert np.isfinite(tree["measured"]["mse"].sel(estimator="no_closed_form")).all()


def test_measured_and_predicted_have_the_same_variables_and_coordinates() -> None:
    tree = fga.diagnose(SMALL, ["backpropagation", "weight", "activity"], n_guesses=64)
    measured, predicted = tree["measured"], tree["predicted"]
    for name in schema.QUANTITIES:
        assert measured[name].dims == predicted[name].dims, name
        assert measured[name].attrs == predicted[name].attrs, name
        assert measured[name + schema.SE].dims == measured[name].dims, name
    for dim in (schema.STEP, schema.ESTIMATOR, schema.SPACE, schema.LAYER):
        np.testing.assert_array_equal(measured[dim], predicted[dim])
    assert measured["layer"].to_numpy().tolist() == ["0", "2", "all"]
    for node in (measured, predicted):
        schema.validate(node.to_dataset())
        np.testing.assert_allclose(node["gradient_norm"], measured["gradient_norm"])


def test_several_snapshots_are_joined_along_the_step() -> None:
    snapshots = [classification((4, 5, 3), n_examples=6, seed=step, step=step) for step in (0, 7)]
    together = fga.diagnose(snapshots, ["activity", "weight"], n_guesses=64, seed=1)
    alone = [fga.diagnose(one, ["activity", "weight"], n_guesses=64, seed=1) for one in snapshots]
    for tree in (together, join(alone)):
        for node in NODES:
            assert tree[node]["step"].to_numpy().tolist() == [0, 7]
            for index, own in enumerate(alone):
                for name in map(str, own[node].data_vars):
                    np.testing.assert_array_equal(tree[node][name].isel(step=index), own[node][name].isel(step=0))


def test_attributes_say_how_it_was_made() -> None:
    attributes = fga.diagnose(SMALL, ["activity", "weight"], n_guesses=64, seed=3)["measured"].attrs
    assert (attributes["n_guesses"], attributes["seed"], attributes["n_examples"]) == (64, 3, 6)
    assert "activity" in attributes["estimator"] and "weight" in attributes["estimator"]


def test_every_estimator_is_named_once() -> None:
    with pytest.raises(ValueError, match="estimators must be different ones and at least one"):
        fga.diagnose(SMALL, ["activity", ActivityPerturbation()])
    with pytest.raises(ValueError, match="estimators must be different ones and at least one"):
        fga.diagnose(SMALL, [])
    with pytest.raises(ValueError, match="unknown estimator 'nonsense'; known ones: backpropagation, weight"):
        fga.diagnose(SMALL, ["nonsense"])
    with pytest.raises(ValueError, match="unknown estimator 'nonsense'"):
        fga.predict(SMALL, "nonsense")


def test_every_step_is_looked_at_once() -> None:
    with pytest.raises(ValueError, match=r"snapshots must be of different steps .* got the steps \[0, 0\]"):
        fga.diagnose([SMALL, SMALL], ["activity"])
    with pytest.raises(ValueError, match="snapshots must be of different steps and at least one"):
        fga.diagnose([], ["activity"])


def test_a_diagnosis_comes_back_from_disk(tmp_path: Path) -> None:
    snapshots = [classification((4, 5, 3), n_examples=6, step=step) for step in (0, 7)]
    tree = fga.diagnose(snapshots, ["activity", OrthogonalUpstream(k=2)], n_guesses=64)
    path = store.write(tree, tmp_path / "cell.nc")
    back = fga.open_results(tmp_path)
    for node in NODES:
        xr.testing.assert_equal(back[node].to_dataset(), tree[node].to_dataset())
        with xr.open_dataset(path, group=node, engine="h5netcdf") as plain:
            xr.testing.assert_equal(plain.load(), tree[node].to_dataset())
            for name, array in plain.items():
                assert array.attrs == tree[node][str(name)].attrs and array.attrs["units"], name
    with xr.open_datatree(path, engine="h5netcdf") as plain:
        assert set(plain.children) == {"measured", "predicted", "subspace"}
    np.testing.assert_array_equal(scores(back), scores(tree))


def test_overlap_and_covariance_norm_are_those_of_the_directions() -> None:
    snapshot, k = classification((6, 16, 8), n_examples=6), 2
    predicted = fga.predict(snapshot, OrthogonalUpstream(k=k))
    (jacobian,), gradient = snapshot.upstream, snapshot.gradients[0]
    right = torch.linalg.svd(jacobian.dense())[2][:, :k]
    ratios = torch.einsum("bku,bu->bk", right, gradient).norm(dim=1) / gradient.norm(dim=1)
    projector = torch.einsum("bku,bkv->buv", right, right)
    distance = torch.linalg.matrix_norm(projector - torch.eye(gradient.shape[1])).mean() / gradient.shape[1]
    for name, expected in (
        ("wang2025_overlap", ratios.mean()),
        ("wang2025_squared_overlap", ratios.square().mean()),
        ("wang2025_covariance_norm", distance),
    ):
        assert float(predicted[name].sel(layer="0")) == pytest.approx(float(expected), rel=1e-5), name
        assert np.isnan(predicted[name].sel(layer="all")), name
