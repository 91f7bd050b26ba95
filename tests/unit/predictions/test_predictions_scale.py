"""Predictions do not depend on the loss's scale, and nothing in them is what rounding leaves of a difference."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fganalysis as fga
from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.results import schema
from theory import feedback
from theory.linear_guess import of_others
from theory.quantities import quantities

SIZES = (5, 7, 6, 4)


@functools.cache
def captured(factor: float, dtype: torch.dtype) -> Snapshot:
    """A ReLU network whose cross-entropy is multiplied by a factor."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return factor * torch.nn.functional.cross_entropy(outputs, targets)

    network = fga.networks.mlp(list(SIZES), bias=True, seed=0, dtype=dtype)
    inputs = torch.randn(6, SIZES[0], generator=torch.Generator().manual_seed(1), dtype=dtype)
    return fga.capture(network, loss, inputs, torch.arange(6) % SIZES[-1])


def chosen(key: str) -> Any:
    """The key's estimator with settings that fit a small network."""
    one = estimators.resolve(key)
    if hasattr(one, "k"):
        return replace(one, k=2)
    return replace(one, steps=2, rate=0.3) if hasattr(one, "steps") and key == "forward_direct_feedback" else one


@pytest.mark.slow
@pytest.mark.parametrize("key", list(estimators.ESTIMATORS))
@given(exponent=st.integers(-25, 25), double=st.booleans())
@settings(max_examples=8, deadline=None)
def test_relative_numbers_do_not_know_the_scale(key: str, exponent: int, double: bool) -> None:
    dtype = torch.float64 if double else torch.float32
    factor = 10.0**exponent
    one, other = (fga.predict(captured(f, dtype), chosen(key)) for f in (1.0, factor))
    tolerance = 1e-9 if double else 2e-4
    for name, array in one.data_vars.items():
        power = {schema.GRADIENT_UNITS: 1, schema.SQUARED_UNITS: 2}.get(array.units, 0)
        scaled = other[name].values / factor**power
        size = max(1.0, float(np.nanmax(np.abs(array.values), initial=0.0)))
        np.testing.assert_allclose(
            scaled, array.values, rtol=tolerance, atol=tolerance * size, err_msg=f"{key}: {name}"
        )


@pytest.mark.parametrize("space", ["activation", "weight"])
@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_a_local_loss_guesses_as_much_of_a_tiny_loss(factor: float, space: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    estimator = estimators.LocalLoss(space=space)
    one, other = (estimator(captured(f, torch.float32), 1, generator).guesses for f in (1.0, factor))
    for own, scaled in zip(one, other, strict=True):
        torch.testing.assert_close(scaled / factor, own, rtol=1e-4, atol=1e-6)
    assert np.isfinite(fga.predict(captured(factor, torch.float32), estimator)["efficiency"].values).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", [estimators.ForwardDirectFeedback(), estimators.ForwardDirectFeedbackAdam()])
def test_hidden_guesses_of_zero_are_predicted_as_zero(estimator: Any, dtype: torch.dtype) -> None:
    """B = 0 at first: the same numbers as `sample` gives for a guess of zeros."""
    snapshot = captured(1.0, dtype)
    predicted, measured = fga.predict(snapshot, estimator), fga.sample(snapshot, estimator, n_guesses=64)
    hidden = {"layer": list(snapshot.layers[:-1])}
    for name, value in {"shrinkage": 0.0, "cosine": 0.0, "variance": 0.0, "descent_probability": 0.0}.items():
        np.testing.assert_array_equal(predicted[name].sel(hidden), value, err_msg=name)
        np.testing.assert_allclose(measured[name].sel(hidden), value, atol=1e-8, err_msg=name)
    for name in ("efficiency", "best_scale", "directional_bias"):
        assert predicted[name].sel(hidden).isnull().all(), name
    np.testing.assert_array_equal(predicted["relative_bias"].sel(hidden), 1.0)
    # At the output tap the guess is exact.
    last = {"layer": snapshot.layers[-1]}
    for name in ("efficiency", "cosine", "best_scale"):
        np.testing.assert_allclose(predicted[name].sel(last), 1.0, rtol=1e-12)


@pytest.mark.parametrize("rate", [1e-4, 1e-9, 1e-13])
def test_a_short_history_is_not_lost_in_rounding(rate: float) -> None:
    """After one step E B = α 𝒥̄: its direction, and its variance of about α², to all digits."""
    rng = np.random.default_rng(0)
    jacobian, derivative, error = rng.normal(size=(4, 2, 3)), np.ones((4, 3)), rng.normal(size=(4, 2))
    (found, _) = feedback.forward_direct_feedback([jacobian], [derivative], error, rate, 1)
    np.testing.assert_allclose(found.mean / rate, error @ jacobian.mean(0), rtol=1e-12)
    (whole, _) = feedback.forward_direct_feedback([jacobian], [derivative], error, 1.0, 1)
    np.testing.assert_allclose(found.variances / rate**2, whole.variances, rtol=1e-12)
    gradient = found.exact
    one, other = (
        quantities([gradient], [layer.mean], variances=[layer.moments().variance()]) for layer in (found, whole)
    )
    for name in ("directional_bias", "efficiency"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("key", ["backpropagation", "feedback_alignment", "direct_feedback", "local_loss"])
def test_what_never_varies_has_no_variance(key: str) -> None:
    predicted = fga.predict(captured(1.0, torch.float32), key)
    np.testing.assert_array_equal(predicted["variance"], 0.0)
    whole = estimators.Subsampled(estimators.resolve(key), 6)
    np.testing.assert_array_equal(fga.predict(captured(1.0, torch.float32), whole)["variance"], 0.0)
    parts = fga.predict_variance_parts(estimators.Subsampled(estimators.resolve(key), 2), captured(1.0, torch.float32))
    np.testing.assert_array_equal(parts.within.value, 0.0)


def test_what_others_add_is_not_what_rounding_leaves() -> None:
    own = np.array([[1e20, 1e20], [1.0, 3.0], [2.0, 5.0]])
    np.testing.assert_array_equal(of_others(own, "example", "joint")[0], [3.0, 8.0])
    np.testing.assert_array_equal(of_others(own[:, :1], "example", "separate"), 0.0)
    np.testing.assert_array_equal(of_others(own.T[:1], "batch", "separate"), [[3.0, 1e20 + 2.0, 1e20 + 1.0]])
    np.testing.assert_array_equal(of_others(own, "batch", "joint")[0, 0], 1e20 + 11.0)


def test_wrong_calls_are_refused_in_one_sentence() -> None:
    snapshot: Any = captured(1.0, torch.float64)
    wrong: list[Any] = [
        (lambda: fga.predict("activity", snapshot), "snapshot must be what fga.capture returns, got 'activity'"),
        (lambda: fga.predict(snapshot, None), "an estimator must be a key or an instance, got None"),
        (lambda: fga.predict_variance_parts("activity", snapshot), "estimator must be a Subsampled"),
        (
            lambda: fga.predict_variance_parts(estimators.Subsampled("activity", 4), None),
            "snapshot must be what fga.capture returns, got None",
        ),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
