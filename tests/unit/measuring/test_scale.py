"""Scale does not matter: a loss times 10^±25, or layers that differ by twenty decades, leave relative numbers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, Subsampled
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from fganalysis.papers import wang2025
from fganalysis.results import schema
from fganalysis.results.tables import formatted

RELATIVE = ("cosine", "shrinkage", "efficiency", "relative_bias", "directional_bias", "descent_probability")
SQUARES = ("variance", "mse", "squared_bias")
PRECISIONS = (torch.float32, torch.float64)


def scaled(scale: float, dtype: torch.dtype = torch.float32) -> Snapshot:
    """A small network whose loss is ``scale`` times the cross-entropy."""
    network = fga.networks.mlp([6, 12, 11, 10], bias=True, seed=0, activation=torch.nn.Tanh, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(7, 6, generator=generator, dtype=dtype)
    targets = torch.randint(0, 10, (7,), generator=generator)
    return fga.capture(network, lambda o, t: scale * torch.nn.functional.cross_entropy(o, t), inputs, targets)


def relative_numbers(found: xr.Dataset) -> dict[str, np.ndarray]:
    squares = {name: (found[name] / found["gradient_norm"] ** 2).values for name in SQUARES}
    return {name: found[name].values for name in RELATIVE} | squares


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("key", ESTIMATORS)
@settings(max_examples=3)
@given(exponent=st.floats(-25, 25))
def test_relative_numbers_do_not_depend_on_the_scale_of_the_loss(key: str, dtype: torch.dtype, exponent: float) -> None:
    reference = fga.sample(scaled(1.0, dtype), key, n_guesses=64)
    found = fga.sample(scaled(10.0**exponent, dtype), key, n_guesses=64)
    # Finite differences lose digits of losses, and not always the same ones.
    tolerance = 1e-2 if key == "finite_difference" else 1e-4
    for name, expected in relative_numbers(reference).items():
        np.testing.assert_allclose(
            relative_numbers(found)[name], expected, rtol=tolerance, atol=tolerance, err_msg=f"{name} of {key}"
        )
    np.testing.assert_allclose(found["gradient_norm"], 10.0**exponent * reference["gradient_norm"], rtol=1e-5)


@settings(max_examples=6)
@given(exponent=st.floats(-25, 25))
def test_parts_of_the_variance_do_not_depend_on_the_scale_of_the_loss(exponent: float) -> None:
    estimator = Subsampled("activity", 3)
    parts = [
        fga.variance_parts(estimator, scaled(scale), 64, torch.Generator().manual_seed(0))
        for scale in (1.0, 10.0**exponent)
    ]
    for name in ("within", "between"):
        expected, found = (getattr(part, name).value for part in parts)
        np.testing.assert_allclose(found / 10.0 ** (2 * exponent), expected, rtol=1e-4)


def written_out(estimates: Estimates, snapshot: Snapshot, layer: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Guesses and gradient of one layer in double precision, in each space: (guess, number) and (number,)."""
    tap = snapshot.taps[layer]
    gradient = snapshot.gradients[layer].double()
    inputs = tap.inputs.double()
    if isinstance(estimates, ActivationEstimates):
        guess = estimates.guesses[layer].double()
        pairs = [(guess, gradient), (guess.mT @ inputs, gradient.T @ inputs)]
    else:
        assert isinstance(estimates, WeightEstimates)
        coefficient = estimates.coefficients[:, layer, None, None].double()
        pairs = [(coefficient * estimates.directions[layer].double(), snapshot.weight_gradients[layer].double())]
    return [(guesses.flatten(1).numpy(), exact.flatten().numpy()) for guesses, exact in pairs]


@pytest.mark.parametrize("kind", ["activation", "weight"])
@settings(max_examples=40)
@given(
    loss=st.floats(-25, 25),
    lengths=st.lists(st.floats(-25, 25), min_size=3, max_size=3),
    of_one_guess=st.floats(-8, 8),
    seed=st.integers(0, 99),
)
def test_sums_of_single_precision_are_those_of_double_precision(
    kind: str, loss: float, lengths: list[float], of_one_guess: float, seed: int
) -> None:
    """At all scales of loss and guesses, layer by layer and guess by guess, relative to the lengths multiplied."""
    snapshot, generator = scaled(10.0**loss), torch.Generator().manual_seed(seed)
    like = [tap.outputs if kind == "activation" else tap.weight for tap in snapshot.taps]
    guesses = [
        10.0**length * torch.randn(3, *one.shape, generator=generator)
        for length, one in zip(lengths, like, strict=True)
    ]
    for guess in guesses:
        guess[1] *= 10.0**of_one_guess
        guess[2] *= 0
    estimates: Estimates = (
        ActivationEstimates(tuple(guesses))
        if kind == "activation"
        else WeightEstimates(torch.randn(3, 3, generator=generator), tuple(guesses))
    )
    inner, norms = (part.numpy() for part in estimates.inner_products(snapshot))
    grams = estimates.error_grams(snapshot, [estimates.total(), estimates.first(1).total()]).numpy()
    first_space = 0 if kind == "activation" else 1
    for layer in range(3):
        for space, (dense, gradient) in enumerate(written_out(estimates, snapshot, layer), first_space):
            products = np.linalg.norm(dense, axis=1) * np.linalg.norm(gradient)
            np.testing.assert_allclose(norms[space, layer], (dense**2).sum(1), rtol=1e-5)
            assert np.all(np.abs(inner[space, layer] - dense @ gradient) <= 1e-5 * products + 1e-300)
            errors = np.stack([dense.sum(0), dense[0]]) - gradient
            limit = 1e-5 * (np.linalg.norm(dense, axis=1).sum() + np.linalg.norm(gradient)) ** 2
            assert np.all(np.abs(grams[space, layer] - errors @ errors.T) <= limit)
    for squares, guess in zip(wang2025.keep(snapshot, estimates), guesses, strict=False):
        np.testing.assert_allclose(squares.numpy(), (guess.double() ** 2).sum((0, 1)).numpy(), rtol=1e-5)


def test_inputs_too_small_to_be_multiplied_in_single_precision_are_seen() -> None:
    """A kernel XXᵀ of 1e-44 is zero there, although the gradient in the weights is 1e-22."""
    network = fga.networks.mlp([6, 5, 4], bias=False, seed=0, activation=torch.nn.Tanh)
    generator = torch.Generator().manual_seed(1)
    inputs = 1e-22 * torch.randn(7, 6, generator=generator)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(7) % 4)
    found = fga.sample(snapshot, "backpropagation", n_guesses=64)
    np.testing.assert_allclose(found["cosine"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found["efficiency"], 1.0, rtol=1e-5)


def deep_sigmoids(dtype: torch.dtype) -> Snapshot:
    """Gradients of 1e-22 in the first layer and 0.1 in the last: joint noise makes guesses 1e21 times the gradient."""
    network = fga.networks.mlp([5, *[4] * 24, 3], bias=False, seed=0, activation=torch.nn.Sigmoid, dtype=dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.7)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 5, generator=generator, dtype=dtype)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(6) % 3)


@pytest.mark.parametrize("key", ["backpropagation", "activity", "weight"])
def test_a_deep_network_is_measured_in_single_precision_as_in_double(key: str) -> None:
    single, double = (fga.sample(deep_sigmoids(dtype), key, n_guesses=64) for dtype in PRECISIONS)
    norms = double["gradient_norm"].sel(space="activation")
    assert float(norms.min()) < 1e-20 and float(norms.max()) > 0.1
    if key == "backpropagation":
        for name in ("cosine", "shrinkage", "efficiency"):
            # Activations that are nearly alike for all examples: differences of theirs lose three digits.
            np.testing.assert_allclose(single[name], 1.0, rtol=1e-3)
        return
    # The noise is drawn in each precision: the same normal numbers to rounding.
    for name in ("inner_product", "squared_norm"):
        ours, reference = (np.abs(found[name].sel(space="weight").values).mean(-1) for found in (single, double))
        assert np.all(ours > reference / 3) and np.all(ours < 3 * reference), name


def test_a_table_of_tiny_numbers_is_no_table_of_zeros() -> None:
    def table(scale: float) -> Any:
        tree = fga.diagnose(scaled(scale), ["activity"], 256, subspace=False)
        frame = fga.summary(tree)
        return frame, formatted(frame, ["variance", "mse"])

    frame, shown = table(1e-22)
    assert len(frame) == 8 and frame[schema.LAYER].nunique() == 4
    assert not shown[["variance", "mse"]].apply(lambda column: column.str.startswith("0 ")).any().any()
    exact = formatted(fga.summary(fga.diagnose(scaled(1e-22), "backpropagation", 64)), ["variance"])
    assert exact["variance"].str.startswith("0 exact").all()
