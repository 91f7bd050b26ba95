"""The best step of a finite difference, its errors and its drift, predicted and measured in each precision."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import fganalysis as fga
from fganalysis.estimators import ESTIMATORS, FiniteDifference
from fganalysis.measuring import difference_errors, difference_step
from fganalysis.measuring.loss_along import LossAlong
from fganalysis.predictions import differences
from tests.refusals import refusal
from tests.unit.estimators.losses_of_weights import hessian_of, third_of

N_DIRECTIONS = 64


def captured(
    activation: type[nn.Module] = nn.Tanh,
    loss_fn: Any = nn.functional.cross_entropy,
    sizes: tuple[int, ...] = (6, 12, 12, 4),
    n_examples: int = 24,
) -> fga.Snapshot:
    network = fga.networks.mlp(sizes, seed=0, activation=activation)
    inputs = torch.randn(n_examples, sizes[0], generator=torch.Generator().manual_seed(0))
    return fga.capture(network, loss_fn, inputs, torch.arange(n_examples) % sizes[-1])


SNAPSHOT = captured()


@pytest.fixture(scope="module")
def measured() -> xr.Dataset:
    return fga.difference_step(SNAPSHOT, n_guesses=64, epsilons=[2.0**-k for k in range(16)])


def direct_errors(snapshot: fga.Snapshot, dtype: torch.dtype, epsilons: list[float]) -> np.ndarray:
    """Root mean square slope errors over ‖G‖, (scheme, epsilon), of the network itself run in the precision."""
    network = copy.deepcopy(snapshot.network).to(dtype)
    inputs, weights = snapshot.inputs.to(dtype), [parameter.detach().clone() for parameter in network.parameters()]
    exact = [parameter.double() for parameter in copy.deepcopy(snapshot.network).double().parameters()]
    outputs = copy.deepcopy(snapshot.network).double()
    loss = snapshot.loss_fn(outputs(snapshot.inputs.double()), snapshot.targets)
    gradient = torch.autograd.grad(loss, list(outputs.parameters()))
    assert len(gradient) == len(exact)
    generator = torch.Generator().manual_seed(7)
    squares = np.zeros((2, len(epsilons)))

    def at(step: float) -> float:
        with torch.no_grad():
            for parameter, weight, z in zip(network.parameters(), weights, direction, strict=True):
                parameter.copy_(torch.add(weight, z, alpha=step))
            return float(snapshot.loss_fn(network(inputs), snapshot.targets))

    for _ in range(N_DIRECTIONS):
        direction = [torch.randn(weight.shape, generator=generator).to(dtype) for weight in weights]
        slope = float(sum((z.double() * g).sum() for z, g in zip(direction, gradient, strict=True)))
        here = at(0.0)
        for number, epsilon in enumerate(epsilons):
            ahead, behind = at(epsilon), at(-epsilon)
            squares[0, number] += ((ahead - here) / epsilon - slope) ** 2
            squares[1, number] += ((ahead - behind) / (2 * epsilon) - slope) ** 2
    norm = float(sum(g.square().sum() for g in gradient)) ** 0.5
    found: np.ndarray = np.sqrt(squares / N_DIRECTIONS) / norm
    return found


@pytest.mark.parametrize(
    ("precision", "exponents"),
    [("float32", range(2, 14, 2)), ("bfloat16", range(1, 8)), ("float16", range(2, 9))],
)
def test_the_curve_over_steps_is_what_the_network_in_that_precision_does(
    measured: xr.Dataset, precision: str, exponents: range
) -> None:
    """Within a factor of 1.5 for each step up to 1/8, and the least error at the predicted step within 2.5."""
    epsilons = [2.0**-k for k in exponents]
    direct = direct_errors(SNAPSHOT, difference_step.PRECISIONS[precision], epsilons)
    predicted = measured.sel(precision=precision, epsilon=epsilons)
    small = np.array(epsilons) <= 1 / 8
    for number, scheme in enumerate(("one-sided", "central")):
        ratio = direct[number] / predicted["slope_error"].sel(scheme=scheme).values
        assert ratio[small].min() > 1 / 1.5 and ratio[small].max() < 1.5, (precision, scheme, ratio)
        best = float(predicted["best_epsilon"].sel(scheme=scheme))
        if min(epsilons) < best < max(epsilons):
            assert abs(np.log2(epsilons[int(direct[number].argmin())] / best)) < 1.4


def test_ingredients_are_those_of_the_tensors() -> None:
    """E (zᵀHz)², E (T zzz)² and E T zzz z·G of Gaussian z in closed form, within their intervals."""
    small = captured(sizes=(2, 3, 2), n_examples=8)
    measured = fga.difference_step(small, n_guesses=128, precisions=["float32"], epsilons=[0.25])
    network = copy.deepcopy(small.network).double()
    snapshot = fga.capture(network, small.loss_fn, small.inputs.double(), small.targets)
    hessian, third = hessian_of(snapshot), third_of(snapshot)
    crossed = np.einsum("ijj->i", third)
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients]).numpy()
    truths = {
        "second_derivative": np.sqrt(np.trace(hessian) ** 2 + 2 * np.sum(hessian**2)),
        "third_derivative": np.sqrt(6 * np.sum(third**2) + 9 * np.sum(crossed**2)),
    }
    for name, truth in truths.items():
        assert float(measured[f"{name}_low"]) < truth < float(measured[f"{name}_high"])
    tilt = 3 * gradient @ crossed / (6 * gradient @ gradient)
    at = measured.sel(epsilon=0.25)
    assert float(at["mean_error_low"]) < tilt / 16 < float(at["mean_error_high"])


def test_conventions_intervals_and_what_follows_from_what(measured: xr.Dataset) -> None:
    fga.schema.validate(measured)
    for name in ("best_epsilon", "least_slope_error", "loss_rounding", "slope_error_there", "truncation_ratio"):
        assert ((measured[f"{name}_low"] < measured[name]) & (measured[name] < measured[f"{name}_high"])).all()
    assert not measured["kinks"].any()
    near = abs(np.log2(measured["epsilon_there"] / measured["best_epsilon"]))
    assert (near < 1.2).all()
    # What is measured at the power of two is what is predicted there.
    for precision in measured["precision"].values:
        for scheme in measured["scheme"].values:
            here = measured.sel(precision=precision, scheme=scheme)
            predicted = float(here["slope_error"].sel(epsilon=float(here["epsilon_there"])))
            assert 0.75 < float(here["slope_error_there"]) / predicted < 1.4
    ordered = measured["best_epsilon"].sel(precision=["float32", "float16", "bfloat16"])
    assert (ordered.diff("precision") > 0).all()
    assert json.loads(measured.attrs["not_measured"]) == {}


def test_the_drift_is_what_perturbing_in_place_leaves(measured: xr.Dataset) -> None:
    """Of one central step, over ‖θ‖: within 4 standard errors of a mean over 64 directions, and 5 %."""
    for precision, dtype in difference_step.PRECISIONS.items():
        weights = torch.cat([parameter.detach().flatten() for parameter in SNAPSHOT.network.parameters()]).to(dtype)
        generator = torch.Generator().manual_seed(3)
        for epsilon in (2.0**-10, 2.0**-5):
            squares = []
            for _ in range(64):
                z = torch.randn(len(weights), generator=generator).to(dtype)
                moved = weights.clone().add_(z, alpha=epsilon).add_(z, alpha=-2 * epsilon).add_(z, alpha=epsilon)
                squares.append(float((moved.double() - weights.double()).square().sum()))
            found, error = np.mean(squares), np.std(squares) / 8
            length = float(measured["drift"].sel(precision=precision, epsilon=epsilon)) * float(weights.double().norm())
            assert abs(found - length**2) < 4 * error + 0.05 * found


def test_kinks_are_said_and_the_best_step_goes_by_them() -> None:
    """The ReLU network's best float32 step is smaller than its derivatives say, and its error there as predicted."""
    snapshot = captured(nn.ReLU, sizes=(6, 48, 48, 4), n_examples=64)
    found = fga.difference_step(snapshot, n_guesses=64, precisions=["float32"]).sel(precision="float32")
    central = found.sel(scheme="central")
    assert float(central["kinks"]) == 1 and float(central["truncation_ratio_low"]) > 2
    third = differences.Truncation(float(central["third_derivative"]) ** 2, 0.0, True)
    assert float(central["best_epsilon"]) < 0.5 * third.best_epsilon(float(central["loss_rounding"]))
    assert 1 / 2 < float(central["slope_error_there"] / central["least_slope_error"]) < 2


def test_a_quadratic_loss_has_no_truncation_and_no_best_central_step() -> None:
    network = nn.Linear(3, 2)
    inputs, targets = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 2)
    snapshot = fga.capture(network, nn.functional.mse_loss, inputs, targets)
    found = fga.difference_step(snapshot, n_guesses=64, precisions=["float32"]).sel(precision="float32")
    central = found.sel(scheme="central")
    assert float(central["best_epsilon"]) == np.inf or float(central["best_epsilon"]) > 100
    assert float(found.sel(scheme="one-sided")["best_epsilon"]) < 1e-2


def test_a_precision_that_does_not_hold_the_loss_is_nan_with_its_reason() -> None:
    def large(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1e6 * nn.functional.cross_entropy(outputs, targets)

    snapshot = captured(loss_fn=large)
    found = fga.difference_step(snapshot, n_guesses=32, precisions=["float16", "bfloat16"])
    assert found["best_epsilon"].sel(precision="float16").isnull().all()
    assert found["best_epsilon"].sel(precision="bfloat16").notnull().all()
    assert "is not finite in float16" in json.loads(found.attrs["not_measured"])["float16"]
    message = refusal(lambda: fga.difference_step(snapshot, n_guesses=8, precisions=["float16"]))
    assert message is not None and "is not finite in float16" in message


def test_the_same_seed_gives_the_same_numbers_whatever_is_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fga.difference_step(SNAPSHOT, n_guesses=8, precisions=["float32"], seed=5)
    assert np.isnan(first["best_epsilon_low"]).all()  # Too few directions for an interval.
    monkeypatch.setattr(LossAlong, "at_once", 3)
    again = fga.difference_step(SNAPSHOT, n_guesses=8, precisions=["float32"], seed=5)
    xr.testing.assert_allclose(first, again, rtol=1e-9)
    other = fga.difference_step(SNAPSHOT, n_guesses=8, precisions=["float32"], seed=6)
    assert float(other["third_derivative"]) != float(first["third_derivative"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"snapshot": 3}, "snapshot must be what fga.capture returns, got 3"),
        ({"estimator": "weight"}, "estimator must be a FiniteDifference or its key, got WeightPerturbation"),
        ({"estimator": "finite"}, "unknown estimator 'finite'"),
        ({"n_guesses": 1}, "n_guesses must be a whole number of at least 2, got 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"precisions": []}, "precisions must be a list of names, at least one, got []"),
        ({"precisions": ["float64"]}, "precisions has the unknown name 'float64'; known ones: float32"),
        ({"epsilons": []}, "epsilons must be a list of steps, at least one, got []"),
        ({"epsilons": [0.0]}, "every one of the epsilons must be a finite number above 0, got 0.0"),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(changed: dict[str, Any], message: str) -> None:
    found = refusal(lambda: fga.difference_step(**({"snapshot": SNAPSHOT} | changed)))
    assert found is not None and found.startswith(message)


def test_the_default_estimator_is_the_finite_difference() -> None:
    assert ESTIMATORS["finite_difference"] is FiniteDifference
    assert difference_step.EPSILONS[0] == difference_errors.SMALLEST_STEP


def test_the_ratio_of_truncation_errors_is_known_from_the_same_directions() -> None:
    """Where derivatives make the error it is 1 for every direction, and its interval has hardly a length."""
    squares = np.random.default_rng(0).exponential(size=64)
    exact = difference_errors.root_of_ratio(4 * squares, squares)
    np.testing.assert_allclose([exact.low, exact.value, exact.high], 2, rtol=1e-4)
    assert difference_errors.root_of_ratio(squares, 0 * squares).value == np.inf
    assert np.isnan(difference_errors.root_of_ratio(0 * squares, 0 * squares).value)
