"""Slope, curvature and best step of every guess against dense matrices and enumerated noise."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, FiniteDifference, RowSampling, label
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import Gaussian, Rademacher
from fganalysis.measuring.network_curvature import of_network
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.measuring.ways_to_products import MATRICES_OF_CURVATURE
from fganalysis.predictions.progress import predict_progress
from fganalysis.results import schema
from tests.laws import tiny_snapshot
from tests.unit.measuring.curved import SNAPSHOTS, dense

N = 512
ESTIMATORS = ("backpropagation", "weight", "activity", "feedback_alignment", "multi_tangent")


def flat_gradient(snapshot: Snapshot) -> Any:
    return torch.cat([g.flatten() for g in snapshot.weight_gradients]).double().numpy()


@dataclass
class EverySign:
    """Weight perturbation with every vector of signs once, block after block; ``calls`` counts the blocks."""

    snapshot: Snapshot
    calls: list[int] = field(default_factory=list)

    def points(self) -> Tensor:
        n_weights = sum(layer.weight.numel() for layer in self.snapshot.weights)
        return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * n_weights)

    def guesses(self) -> Tensor:
        points = self.points()
        gradient = torch.from_numpy(flat_gradient(self.snapshot))
        return (points @ gradient)[:, None] * points

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        everything = self.guesses()
        if n_guesses > 1:
            self.calls.append(1)
        start = (len(self.calls) - 1) * n_guesses % len(everything)
        some = everything[start : start + n_guesses]
        sizes = [layer.weight.numel() for layer in snapshot.weights]
        directions = tuple(
            part.view(n_guesses, *layer.weight.shape)
            for part, layer in zip(some.split(sizes, 1), snapshot.weights, strict=True)
        )
        return WeightEstimates(some.new_ones(n_guesses, len(sizes)), directions)


@pytest.mark.parametrize("kind", MATRICES_OF_CURVATURE)
def test_everything_of_enumerated_guesses_is_that_of_the_dense_matrix(kind: str) -> None:
    snapshot = tiny_snapshot((2, 2, 2), n_examples=3, seed=3)
    every, matrix, g = EverySign(snapshot), dense(snapshot, kind), flat_gradient(snapshot)
    guesses = every.guesses().numpy()
    n = len(guesses)
    dataset = fga.progress(snapshot, every, n, curvature=kind).isel(step=0, estimator=0)  # type: ignore[arg-type]
    forms = np.einsum("ni,ij,nj->n", guesses, matrix, guesses)
    np.testing.assert_allclose(dataset["guess_curvature"], forms, rtol=1e-9)
    np.testing.assert_allclose(dataset["guess_slope"], guesses @ g, rtol=1e-9)
    pairs = guesses @ matrix @ guesses.T
    others = (pairs.sum(1) - np.diagonal(pairs)) / (n - 1)
    np.testing.assert_allclose(dataset["guess_curvature_with_others"], others, rtol=1e-7, atol=1e-12)
    slope, bend, between = (guesses @ g).mean(), forms.mean(), others.mean()
    np.testing.assert_allclose(slope, g @ g, rtol=1e-10)
    exact = np.trace(matrix) * (g @ g) + 2 * g @ matrix @ g - 2 * (g**2) @ np.diagonal(matrix)
    np.testing.assert_allclose(bend, exact, rtol=1e-8)
    np.testing.assert_allclose(dataset["mean_curvature"], between, rtol=1e-8)
    numbers = dataset["averaged"].values
    assert numbers.tolist() == [1 << power for power in range(9)]
    curvature = bend / numbers + (1 - 1 / numbers) * between
    np.testing.assert_allclose(dataset["curvature_along"], curvature, rtol=1e-8)
    np.testing.assert_allclose(dataset["best_step"], slope / curvature, rtol=1e-8)
    # The value of a square is corrected for its noise: see `fganalysis.statistics.efficiency`.
    square = slope**2 - (guesses @ g).var() / (n - 1)
    np.testing.assert_allclose(dataset["expected_decrease"], square / (2 * curvature), rtol=1e-8)
    share = square / curvature * (g @ matrix @ g) / (g @ g) ** 2
    np.testing.assert_allclose(dataset["curved_efficiency"], share, rtol=1e-8)
    step = float(dataset["best_step"][0])
    np.testing.assert_allclose(dataset["guess_decrease"], decreases(snapshot, guesses, step), rtol=1e-6, atol=1e-12)


def decreases(snapshot: Snapshot, guesses: Any, step: float) -> Any:
    """L(θ) − L(θ − step·ĝ) of every guess, one after another."""
    found = []
    before = float(snapshot.loss)
    network = snapshot.network
    names = [name for layer in snapshot.weights for name in layer.parameter_names]
    for guess in guesses:
        start, moved = 0, {}
        for layer in snapshot.weights:
            part = torch.from_numpy(guess[start : start + layer.weight.numel()]).view(layer.weight.shape)
            moved |= layer.by_parameter(layer.weight - step * part)
            start += layer.weight.numel()
        assert set(moved) == set(names)
        outputs = torch.func.functional_call(network, moved, (snapshot.inputs,))
        found.append(before - float(snapshot.loss_fn(outputs, snapshot.targets)))
    return np.array(found)


@pytest.mark.parametrize("kind", MATRICES_OF_CURVATURE)
def test_numbers_of_the_network_are_exact_where_it_is_small(kind: str) -> None:
    snapshot = SNAPSHOTS["bias"]
    matrix, g = dense(snapshot, kind), flat_gradient(snapshot)
    dataset = fga.progress(snapshot, "backpropagation", 64, curvature=kind).isel(step=0)  # type: ignore[arg-type]
    of_all = dataset.sel(layer="all")
    bend = g @ matrix @ g
    np.testing.assert_allclose(of_all["gradient_curvature"], bend, rtol=1e-9)
    np.testing.assert_allclose(of_all["curvature_trace"], np.trace(matrix), rtol=1e-9)
    np.testing.assert_allclose(of_all["effective_rank"], np.trace(matrix) * (g @ g) / bend, rtol=1e-9)
    np.testing.assert_allclose(of_all["gradient_step"], g @ g / bend, rtol=1e-9)
    np.testing.assert_allclose(of_all["gradient_decrease"], (g @ g) ** 2 / bend / 2, rtol=1e-9)
    assert float(of_all["curvature_trace_se"]) == 0
    size = snapshot.weights[0].weight.numel()
    first = dataset.isel(layer=0)
    np.testing.assert_allclose(first["curvature_trace"], np.trace(matrix[:size, :size]), rtol=1e-9)
    np.testing.assert_allclose(first["gradient_curvature"], g[:size] @ matrix[:size, :size] @ g[:size], rtol=1e-9)
    of_gradient = dataset.isel(estimator=0)
    for name, expected in (("curved_efficiency", 1.0), ("best_step", g @ g / bend), ("curvature_along", bend)):
        np.testing.assert_allclose(of_gradient[name], expected, rtol=1e-9)
        np.testing.assert_allclose(of_gradient[name + "_predicted"], expected, rtol=1e-9)
        assert (of_gradient[name + "_low"] < expected).all() and (of_gradient[name + "_high"] > expected).all()


@pytest.mark.parametrize("kind", MATRICES_OF_CURVATURE)
def test_the_trace_of_a_larger_network_is_within_its_error(kind: str) -> None:
    snapshot = tiny_snapshot((6, 9, 8, 3), n_examples=9)
    matrix = dense(snapshot, kind)
    dataset = fga.progress(snapshot, "backpropagation", 64, curvature=kind).isel(step=0)  # type: ignore[arg-type]
    assert float(dataset["curvature_trace_se"].sel(layer="all")) > 0
    starts = np.cumsum([0, *(layer.weight.numel() for layer in snapshot.weights)])
    blocks = [np.trace(matrix[a:b, a:b]) for a, b in itertools.pairwise(starts)]
    z = (dataset["curvature_trace"] - np.array([*blocks, np.trace(matrix)])) / dataset["curvature_trace_se"]
    assert float(abs(z).max()) < 4


@pytest.fixture(scope="module")
def sampled() -> Any:
    return fga.progress(tiny_snapshot((4, 6, 5, 3), n_examples=6), ESTIMATORS, N, seed=1).isel(step=0)


def test_measured_and_predicted_agree(sampled: Any) -> None:
    for name in schema.PROGRESS_PREDICTED:
        theory, measured = sampled[name + "_predicted"], sampled[name]
        assert bool(theory.notnull().all()), name
        error = np.hypot((measured - sampled[name + "_low"]) / 1.96, sampled[name + "_predicted_se"])
        above = np.hypot((sampled[name + "_high"] - measured) / 1.96, sampled[name + "_predicted_se"])
        z = (measured - theory) / np.where(measured > theory, error, above)
        # An interval of what does not vary is as long as rounding.
        assert float(abs(z).max()) < 4, name


@pytest.mark.parametrize("noise", [Gaussian(), Rademacher()])
def test_random_directions_agree_with_all_of_them(noise: Any) -> None:
    """Of noise that examples share the covariance is a difference of squares."""
    snapshot = tiny_snapshot((3, 3, 2), n_examples=3)
    estimator, product = ActivityPerturbation(noise=noise, shared=True), Curvature(snapshot, "hessian")
    (exact,) = predict_progress(snapshot, estimator, of_network(snapshot, product, 64, 0).curvature).curvature
    few = [predict_progress(snapshot, estimator, of_network(snapshot, product, 30, s).curvature) for s in range(20)]
    values = np.concatenate([one.curvature for one in few])
    assert len(values) == 600 and abs(values.mean() - exact) < 4 * values.std() / 600**0.5
    assert values.std() / 600**0.5 < 0.1 * abs(exact)


def test_guesses_without_any_noise_left_are_exact() -> None:
    snapshot = tiny_snapshot((3, 2, 2), n_examples=2)
    chosen = [RowSampling(keep=2), fga.estimators.Minibatch(2), "backpropagation"]
    dataset = fga.progress(snapshot, chosen, 8).isel(step=0)
    np.testing.assert_allclose(dataset["curvature_along_predicted"].std("estimator"), 0, atol=1e-12)


def test_what_is_not_predicted_says_why() -> None:
    snapshot = tiny_snapshot((3, 2, 2), n_examples=2)
    dataset = fga.progress(snapshot, ["activity", "activation_mixing", FiniteDifference(central=False)], 8)
    reasons = json.loads(dataset.attrs[schema.NOT_PREDICTED])
    assert list(reasons) == ["activation_mixing", label(FiniteDifference(central=False))]
    assert "one-sided difference" in reasons[label(FiniteDifference(central=False))]
    assert schema.NOT_PREDICTED not in fga.progress(snapshot, "activity", 8).attrs


def test_a_prediction_that_fails_leaves_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a closed form of the user's may."""

    def fails(*_: Any) -> None:
        raise KeyError("no such layer")

    expected = fga.progress(SNAPSHOTS["bias"], "activity", 8)
    monkeypatch.setattr("fganalysis.measuring.progress_dataset.predict_progress", fails)
    found = fga.progress(SNAPSHOTS["bias"], "activity", 8)
    assert found["best_step_predicted"].isnull().all()
    xr.testing.assert_equal(found["curvature_along"], expected["curvature_along"])
    assert "no such layer" in json.loads(found.attrs[schema.NOT_PREDICTED])["activity"]


def test_guesses_are_those_of_sample(sampled: Any) -> None:
    snapshot = tiny_snapshot((4, 6, 5, 3), n_examples=6)
    for name in ("weight", "activity"):
        own = fga.sample(snapshot, name, N, seed=1)["inner_product"].sel(space="weight", layer="all")
        np.testing.assert_allclose(sampled["guess_slope"].sel(estimator=name), own, rtol=1e-9, atol=1e-15)


def test_every_variable_has_its_words_and_errors(sampled: Any) -> None:
    for name in (*schema.PROGRESS, *schema.OF_NETWORK, *schema.OF_GUESSES):
        assert sampled[name].attrs["long_name"] and sampled[name].attrs["units"], name
    for name in schema.PROGRESS:
        for suffix in schema.BESIDE:
            assert name + suffix in sampled, name + suffix
    assert json.loads(sampled.attrs["cautions"]).keys() <= {"network", *ESTIMATORS}


def test_the_mean_of_guesses_is_the_averaged_estimator(sampled: Any) -> None:
    snapshot = tiny_snapshot((4, 6, 5, 3), n_examples=6)
    mean = fga.progress(snapshot, fga.estimators.Averaged("weight", 4), N).isel(step=0, estimator=0)
    single = sampled.sel(estimator="weight")
    for name in ("curvature_along", "best_step", "expected_decrease", "curved_efficiency"):
        np.testing.assert_allclose(mean[name + "_predicted"][0], single[name + "_predicted"][2], rtol=1e-9)
        difference = float(mean[name][0] - single[name][2])
        assert abs(difference) < 4 * np.hypot(float(mean[name + "_se"][0]), float(single[name + "_se"][2])), name


def loss_of(shape: Callable[[Tensor], Tensor]) -> Snapshot:
    """One weight, whose loss is a function of it alone, at 1."""
    network = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        network.weight.fill_(1.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    return fga.capture(network, lambda outputs, _: shape(outputs).sum(), one, one)


def test_negative_curvature_is_said() -> None:
    dataset = fga.progress(loss_of(lambda w: -(w**2)), ["backpropagation", "weight"], 64).isel(step=0)
    assert float(dataset["gradient_curvature"].sel(layer="all")) == pytest.approx(-8.0)
    assert float(dataset["gradient_step"].sel(layer="all")) == np.inf
    assert bool(dataset["effective_rank"].isnull().all())
    for name in ("best_step", "expected_decrease"):
        assert bool((dataset[name] == np.inf).all()) and bool((dataset[name + "_high"] == np.inf).all())
        assert bool((dataset[name + "_predicted"] == np.inf).all())
    assert bool(dataset["curved_efficiency"].isnull().all())
    assert bool((dataset["step_known"] == 0).all())
    assert not np.signbit(dataset["curvature_along_predicted_se"]).any()
    said = json.loads(dataset.attrs["cautions"])
    assert "along the gradient is not positive" in said["network"][0]
    assert "the quadratic model has no best step" in said["weight"][0]


@dataclass(frozen=True)
class Times:
    """The gradient times a number: ``factor``, plus noise of that size."""

    factor: float
    noise: float = 0.0

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        like = snapshot.weight_gradients[0]
        factors = self.factor + self.noise * torch.randn(n_guesses, 1, generator=generator, dtype=like.dtype)
        directions = tuple(g.expand(n_guesses, *g.shape) for g in snapshot.weight_gradients)
        return WeightEstimates(factors.expand(-1, len(directions)), directions)


def test_guesses_that_point_uphill_have_no_step() -> None:
    dataset = fga.progress(loss_of(torch.square), [Times(-1.0), Times(0.01, 1.0)], 256).isel(step=0)
    uphill, unsure = (dataset.isel(estimator=index) for index in range(2))
    for name in ("best_step", "expected_decrease", "curved_efficiency"):
        assert bool(uphill[name].isnull().all())
    said = json.loads(dataset.attrs["cautions"])
    uphill_said, unsure_said = said[str(uphill["estimator"].values)], said[str(unsure["estimator"].values)]
    assert "does not point downhill" in uphill_said[0]
    assert "slope holds zero" in unsure_said[0] or "does not point downhill" in unsure_said[0]
    assert float(unsure["best_step_low"][0]) < 0 < float(unsure["best_step_high"][0])
    assert bool((dataset["step_known"] == 0).all())
    assert bool(dataset["decrease_at_step"][0].isnull())


def test_kinks_are_said_and_measured() -> None:
    smooth = fga.progress(loss_of(torch.square), "weight", 64).isel(step=0)
    assert float(smooth["has_kinks"]) == 0 and "network" not in json.loads(smooth.attrs["cautions"])
    assert abs(float(smooth["unseen_curvature"][0])) < 1e-9
    kinked = fga.progress(loss_of(lambda w: torch.relu(w - 0.9) * 10 + w**2), "backpropagation", 64).isel(step=0)
    assert float(kinked["has_kinks"]) == 1
    said = json.loads(kinked.attrs["cautions"])
    assert "the loss has kinks" in said["network"][-1]
    assert "above the curvature" in said["backpropagation"][-1]
    assert float(kinked["unseen_curvature"][0]) > 0.1


@pytest.mark.parametrize("digits", [-22, 22])
def test_relative_numbers_do_not_depend_on_the_unit_of_the_loss(digits: int) -> None:
    network = fga.networks.mlp([4, 5, 3], seed=0, activation=torch.nn.Tanh)
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    targets, cross_entropy = torch.arange(6) % 3, torch.nn.functional.cross_entropy

    def of(size: float) -> Any:
        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            return size * cross_entropy(outputs, labels)

        return fga.progress(fga.capture(network, loss, inputs, targets), "weight", 64).isel(step=0, estimator=0)

    plain, scaled = of(1.0), of(10.0**digits)
    for name, power in (("curved_efficiency", 0), ("best_step", -1), ("expected_decrease", 1), ("curvature_along", 3)):
        for suffix in ("", "_low", "_high", "_predicted"):
            found = scaled[name + suffix] / 10.0 ** (power * digits)
            np.testing.assert_allclose(found, plain[name + suffix], rtol=2e-3)
    np.testing.assert_allclose(scaled["unseen_curvature"], plain["unseen_curvature"], rtol=2e-2, atol=1e-3)


def test_what_fails_is_said_and_the_others_stay() -> None:
    def broken(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Any:
        raise RuntimeError("no guesses today")

    snapshot = tiny_snapshot()
    dataset = fga.progress([snapshot], [broken, "weight"], 32).isel(step=0)
    assert "no guesses today" in json.loads(dataset.attrs["not_measured"])["broken"]
    assert bool(dataset["best_step"].sel(estimator="broken").isnull().all())
    assert bool(dataset["curvature_along"].sel(estimator="weight").notnull().all())
    with pytest.raises(ValueError, match=r"no estimator could be measured; .*no guesses today"):
        fga.progress(snapshot, broken, 32)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"curvature": "fisher"}, "curvature must be 'hessian' or 'gauss_newton', got 'fisher'"),
        ({"n_guesses": 1}, "n_guesses must be a whole number of at least 2"),
        ({"estimators": []}, "estimators must be different ones and at least one"),
        ({"snapshot": 3}, "snapshot must be what fga.capture returns"),
        ({"memory": 10}, "memory must be at least"),
    ],
)
def test_mistakes_are_refused(wrong: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"snapshot": tiny_snapshot(), "estimators": "weight"} | wrong
    with pytest.raises(ValueError, match=words):
        fga.progress(**given)
