"""Jacobians that do not have full rank: every upstream estimator and switch against enumeration, whatever the basis.

Directions of zero singular values, and those within a group of equal ones, are a library's choice. No result may hold
them: prediction and exact enumeration agree, and renaming the hidden units, which makes a library choose others,
changes no prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Subsampled,
    Upstream,
    label,
)
from fganalysis.testing import exact_moments, signs, three_points

DOUBLE = torch.float64


def network(weights: list[Tensor], bias: float | None = None) -> torch.nn.Sequential:
    """Linear layers of the given weights with ReLU between them."""
    layers: list[torch.nn.Module] = []
    for weight in weights:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=DOUBLE)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.fill_(bias)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def deficient(sizes: tuple[int, ...], kind: str, n_examples: int = 2) -> Snapshot:
    """A snapshot with a Jacobian of lower rank than its smaller side, and a gradient in every layer.

    kind: "dead" units, "copies" of a column of every W, or W of "low rank".
    """
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(out, into, generator=generator, dtype=DOUBLE) for into, out in itertools.pairwise(sizes)]
        for weight in weights[1:]:
            if kind == "copies":
                weight[:, -1] = weight[:, 0]
            elif kind == "low rank":
                weight[:] = torch.outer(weight[:, 0], weight[0])
        inputs = torch.randn(n_examples, sizes[0], generator=generator, dtype=DOUBLE)
        targets = torch.randn(n_examples, sizes[-1], generator=generator, dtype=DOUBLE)
        try:
            snapshot = fga.capture(network(weights, 0.1), torch.nn.functional.mse_loss, inputs, targets)
        except CannotMeasure:  # All units of a layer are dead.
            continue
        ranks = [one.rank() for one in snapshot.upstream]
        full = [min(one.weight.shape) for one in snapshot.upstream]
        lower = any(bool((rank < most).any()) for rank, most in zip(ranks, full, strict=True))
        if lower and all(bool(g.any(1).all()) for g in snapshot.gradients):
            return snapshot
    raise AssertionError(f"no seed has deficient Jacobians for {sizes}")


SNAPSHOTS = {
    "dead, narrowing": deficient((2, 4, 2, 2), "dead"),
    "dead, square": deficient((2, 3, 3, 1), "dead"),
    "dead, widening": deficient((2, 2, 3, 1), "dead"),
    "copies": deficient((3, 3, 3, 1), "copies"),
    "low rank": deficient((3, 3, 2, 2), "low rank"),
}
SWITCHES = [
    {"shared": shared, "slope": slope, "layers": layers}
    for shared, slope, layers in itertools.product((False, True), ("example", "batch"), ("joint", "separate"))
]
FAMILY: list[Callable[..., Any]] = [
    Upstream,
    lambda **switches: OrthogonalUpstream(k=1, **switches),
    lambda **switches: OrthogonalUpstream(k="rank", **switches),
    lambda **switches: OrthogonalUpstream(k=1, which="bottom", **switches),
    lambda **switches: OrthogonalUpstream(k=1, iterations=1, **switches),
    lambda **switches: NewtonSchulzUpstream(k=1, **switches),
    PreconditionedUpstream,
    lambda **switches: PreconditionedUpstream(exact=True, **switches),
    lambda **switches: ActivityPerturbation(active_only=True, **switches),
]
IDS = ["upstream", "k = 1", "rank", "bottom", "iterated", "newton_schulz", "preconditioned", "exact", "live units"]


def enumerated(estimator: Any, snapshot: Snapshot, law: Any = signs) -> dict[str, np.ndarray]:
    """Some of what `predict` says, (space, layer), from the exact mean and covariance of the guess."""
    exact = exact_moments(estimator, snapshot, law)
    spaces = [
        (exact.activation_mean, exact.activation_covariance, snapshot.gradients),
        (exact.weight_mean, exact.weight_covariance, snapshot.weight_gradients),
    ]
    found: dict[str, list[list[float]]] = {"variance": [], "squared_bias": [], "shrinkage": []}
    for mean, covariance, gradients in spaces:
        assert mean is not None and covariance is not None
        sizes = [g.numel() for g in gradients]
        means, variances = mean.split(sizes), covariance.diagonal().split(sizes)
        flat = [g.flatten() for g in gradients]
        found["variance"].append([float(v.sum()) for v in variances])
        found["squared_bias"].append([float((m - g).square().sum()) for m, g in zip(means, flat, strict=True)])
        found["shrinkage"].append([float(m @ g / g.square().sum()) for m, g in zip(means, flat, strict=True)])
    mean, covariance, _ = spaces[0]
    assert mean is not None and covariance is not None
    seed_papers = []
    for m, v, g in zip(
        mean.split([g.numel() for g in snapshot.gradients]),
        covariance.diagonal().split([g.numel() for g in snapshot.gradients]),
        snapshot.gradients,
        strict=True,
    ):
        error, spread = m.view_as(g) - g, v.view_as(g)
        seed_papers.append(float((((spread + error**2).mean(0)) - error.mean(0) ** 2).norm()))
    return {name: np.array(rows) for name, rows in found.items()} | {"wang2025_variance": np.array(seed_papers)}


@pytest.mark.slow
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("make", FAMILY, ids=IDS)
def test_prediction_is_enumeration_on_deficient_jacobians(make: Callable[..., Any], switches: dict[str, Any]) -> None:
    for name, snapshot in SNAPSHOTS.items():
        estimator = make(**switches)
        predicted = fga.predict(snapshot, replace(estimator, noise=signs()))
        for quantity, values in enumerated(estimator, snapshot).items():
            ours = predicted[quantity].values[..., :-1]
            np.testing.assert_allclose(ours, values, rtol=1e-8, atol=1e-10, err_msg=f"{name}, {quantity}")


@pytest.mark.parametrize("layers", ["joint", "separate"])
@pytest.mark.parametrize("name", ["dead, square", "dead, widening"])
def test_the_law_that_is_drawn_at_the_defaults_is_the_predicted_one(
    name: str, layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a law of the Gaussian's moments that is let through as isotropic; its example's own noise."""
    monkeypatch.setattr("fganalysis.estimators.upstream.preconditioned.is_isotropic", lambda noise: True)
    snapshot = SNAPSHOTS[name] if name == "dead, widening" else deficient((2, 2, 2, 1), "dead")
    estimator = PreconditionedUpstream(layers=layers)
    predicted = fga.predict(snapshot, estimator)
    for quantity, values in enumerated(estimator, snapshot, three_points).items():
        np.testing.assert_allclose(predicted[quantity].values[..., :-1], values, rtol=1e-8, atol=1e-10)


def renamed(snapshot: Snapshot, seed: int) -> Snapshot:
    """The same network with its hidden units in another order."""
    generator = torch.Generator().manual_seed(seed)
    weights, biases = ([getattr(tap_module, name).detach() for tap_module in linears(snapshot)] for name in PARTS)
    order = torch.arange(weights[0].shape[1])
    shuffled = []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        new = torch.arange(len(weight))
        if index < len(weights) - 1:
            new = torch.randperm(len(weight), generator=generator)
        shuffled.append((weight[new][:, order], bias[new]))
        order = new
    copy = network([weight for weight, _ in shuffled], 0.0)
    for module, (_, bias) in zip((m for m in copy if isinstance(m, torch.nn.Linear)), shuffled, strict=True):
        with torch.no_grad():
            module.bias.copy_(bias)
    return fga.capture(copy, snapshot.loss_fn, snapshot.inputs, snapshot.targets)


PARTS = ("weight", "bias")


def linears(snapshot: Snapshot) -> list[torch.nn.Linear]:
    return [module for module in snapshot.network.modules() if isinstance(module, torch.nn.Linear)]


def assert_same_prediction(one: xr.Dataset, other: xr.Dataset) -> None:
    for name in one.data_vars:
        np.testing.assert_allclose(one[name].values, other[name].values, rtol=1e-7, atol=1e-9, err_msg=str(name))


@pytest.mark.slow
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("make", FAMILY, ids=IDS)
def test_renaming_units_changes_no_prediction(make: Callable[..., Any], switches: dict[str, Any]) -> None:
    """Of any quantity: wang2025_variance, cosine and descent probability at the default noise included."""
    for snapshot in SNAPSHOTS.values():
        estimator = make(**switches)
        assert_same_prediction(fga.predict(snapshot, estimator), fga.predict(renamed(snapshot, 1), estimator))


def orthogonal_snapshot() -> Snapshot:
    """All singular values of a hidden Jacobian are equal: its leading directions are any."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=DOUBLE)).Q
    weights = [torch.randn(12, 3, generator=generator, dtype=DOUBLE), hidden]
    weights.append(torch.randn(2, 12, generator=generator, dtype=DOUBLE))
    inputs, targets = torch.randn(4, 3, generator=generator, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    return fga.capture(network(weights, 0.0), torch.nn.functional.mse_loss, inputs, targets)


@pytest.mark.parametrize(
    "estimator",
    [
        OrthogonalUpstream(k=2),
        OrthogonalUpstream(k=1, which="bottom"),
        OrthogonalUpstream(k=2, iterations=1),
        Averaged(OrthogonalUpstream(k=2), 2),
        Subsampled(OrthogonalUpstream(k=2), 2),
    ],
    ids=label,
)
def test_undetermined_directions_are_not_predicted(estimator: Any) -> None:
    """NaN, as another library, machine or order of the units draws others; the covariance norm is that of any k."""
    snapshot = orthogonal_snapshot()
    predicted = fga.predict(snapshot, estimator)
    for name in ("variance", "bias", "cosine", "descent_probability", "wang2025_variance", "wang2025_overlap"):
        assert np.isnan(predicted[name].values).all(), name
    if isinstance(estimator, OrthogonalUpstream):
        assert np.isfinite(predicted["wang2025_covariance_norm"].values[:-1]).all()


@pytest.mark.parametrize(
    "estimator", [OrthogonalUpstream(k="rank"), PreconditionedUpstream(), NewtonSchulzUpstream(k=2)], ids=label
)
def test_whole_groups_of_equal_singular_values_are_predicted(estimator: Any) -> None:
    snapshot = orthogonal_snapshot()
    for switches in SWITCHES:
        chosen = replace(estimator, **switches)
        assert np.isfinite(fga.predict(snapshot, chosen)["variance"].values).all()
        assert_same_prediction(fga.predict(snapshot, chosen), fga.predict(renamed(snapshot, 1), chosen))
