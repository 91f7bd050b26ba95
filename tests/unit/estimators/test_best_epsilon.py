"""Truncation and rounding of a finite difference, and the ε between them."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fganalysis as fga
from fganalysis.estimators import FiniteDifference
from tests import laws
from tests.unit.estimators.losses_of_weights import hessian_of, loss_of_weights, third_of
from theory import finite_difference


@given(seed=st.integers(0, 1000), n_weights=st.integers(1, 3))
@settings(max_examples=15)
def test_truncation_of_the_slope_by_enumeration(seed: int, n_weights: int) -> None:
    rng = np.random.default_rng(seed)
    hessian = rng.normal(size=(n_weights, n_weights))
    hessian = hessian + hessian.T
    third = rng.normal(size=(n_weights,) * 3)
    third = sum((third.transpose(axes) for axes in itertools.permutations(range(3))), np.zeros_like(third))
    # Four Gauss–Hermite points have the moments of N(0, 1) up to the seventh.
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    z = np.array(list(itertools.product(nodes, repeat=n_weights)))
    p = np.array(list(itertools.product(weights / weights.sum(), repeat=n_weights))).prod(1)
    curvature = np.einsum("ni,ij,nj->n", z, hessian, z)
    cubic = np.einsum("ni,nj,nk,ijk->n", z, z, z, third)
    found = finite_difference.one_sided_truncation(hessian, 3.0), finite_difference.central_truncation(third)
    np.testing.assert_allclose(found, [np.sqrt(p @ curvature**2) / 2, np.sqrt(p @ cubic**2) / 6], rtol=1e-10)


@pytest.mark.parametrize("central", [False, True])
def test_best_epsilon_is_the_bottom_of_the_u(central: bool) -> None:
    grid = np.geomspace(1e-6, 1, 2001)
    errors = finite_difference.slope_error(grid, 3.0, 1e-7, central=central)
    best = finite_difference.best_epsilon(3.0, 1e-7, central=central)
    assert abs(math.log(grid[errors.argmin()] / best)) < 0.01
    assert errors.argmin() not in (0, len(grid) - 1)


@pytest.mark.parametrize("central", [False, True])
def test_the_measured_u_of_a_network_in_single_precision(central: bool) -> None:
    """Slope errors from ε = 1e-4 to 1e-1 within a factor of 1.5 of the model, all constants of which are computed."""
    network = fga.networks.mlp([4, 6, 3], seed=0, activation=nn.Tanh)
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(8, 4, generator=generator), torch.arange(8) % 3
    single = fga.capture(network, nn.functional.cross_entropy, inputs, targets)
    double = fga.capture(copy.deepcopy(network).double(), nn.functional.cross_entropy, inputs.double(), targets)
    loss, weights = loss_of_weights(double)
    truncation = (
        finite_difference.central_truncation(third_of(double))
        if central
        else finite_difference.one_sided_truncation(hessian_of(double), 3.0)
    )
    loss_in_single, weights_in_single = loss_of_weights(single)
    steps = 0.01 * torch.randn(400, len(weights), generator=generator)
    moved = torch.func.vmap(loss_in_single)(weights_in_single + steps).double()
    rounding = float((moved - torch.func.vmap(loss)(weights + steps.double())).square().mean().sqrt())
    assert 1e-8 < rounding < 1e-6

    def measured(epsilon: float) -> float:
        found = FiniteDifference(epsilon, central)(single, 2000, torch.Generator().manual_seed(2))
        z = torch.cat([direction.flatten(1) for direction in found.directions], dim=1).double()
        slopes = found.coefficients[:, 0].double()
        return float((slopes - z @ laws.exact_gradient(double)[1]).square().mean().sqrt())

    for epsilon in (1e-4, 1e-3, 1e-2, 1e-1):
        model = float(finite_difference.slope_error(epsilon, truncation, rounding, central=central))
        assert 1 / 1.5 < measured(epsilon) / model < 1.5, (epsilon, measured(epsilon), model)
