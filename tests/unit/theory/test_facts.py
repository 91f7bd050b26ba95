"""Facts 4 and 5 and the energy curves on the network of Wang et al. at initialisation, in formulas.

Sources: docs/mathematics.md#energy-curves, docs/mathematics.md#facts-that-follow. Facts 1–3 are in test_upstream.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from tests.enumerated import Array
from theory import energy_curves, subspace
from theory.factors import Diagonal, Factor
from theory.linear_guess import Layers, moments
from theory.quantities import quantities
from theory.upstream import orthogonal, singular_triplets
from theory.wang2025 import overlap


@dataclass(frozen=True, eq=False)
class Network:
    """40-w-w-w-10 without biases, PyTorch's default initialisation, Gaussian inputs, random labels, mean cross-entropy.

    weights: (out, in) a tap; inputs, gradients: (example, unit) a tap; derivatives: those of all taps but the last.
    """

    weights: list[Array]
    inputs: list[Array]
    derivatives: list[Array]
    gradients: list[Array]


def network(width: int, examples: int, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    sizes = [40, width, width, width, 10]
    weights = [rng.uniform(-1, 1, size=(out, fan_in)) / np.sqrt(fan_in) for fan_in, out in itertools.pairwise(sizes)]
    inputs, derivatives = [rng.normal(size=(examples, 40))], []
    for weight in weights[:-1]:
        activation = inputs[-1] @ weight.T
        derivatives.append((activation > 0).astype(np.float64))
        inputs.append(np.maximum(activation, 0.0))
    logits = inputs[-1] @ weights[-1].T
    errors = np.exp(logits - logits.max(1, keepdims=True))
    errors /= errors.sum(1, keepdims=True)
    errors[np.arange(examples), rng.integers(0, 10, examples)] -= 1.0
    gradients = [errors / examples]
    for weight, derivative in zip(weights[:0:-1], derivatives[::-1], strict=True):
        gradients.insert(0, (gradients[0] @ weight) * derivative)
    return Network(weights, inputs, derivatives, gradients)


def variances(net: Network, factors: list[Factor], layers: Layers) -> Array:
    """tr Cov Ĝ of every tap and of all in weight space, independent Gaussian noise and example slopes."""
    ones = [1.0] * len(factors)
    found = moments(net.gradients, factors, [3.0] * len(factors), ones, shared=False, slope="example", layers=layers)
    kernels = [x @ x.T for x in net.inputs]
    second = [one.second_moment(kernel) for one, kernel in zip(found, kernels, strict=True)]
    return quantities(net.gradients, [one.mean for one in found], second, kernels)["variance"]


def test_fact_4_the_other_layers_noise_dominates_a_joint_pass() -> None:
    """About 290, 47 and 7.5 times the variance of the single-matrix formula, within a third over random draws."""
    ratios = []
    for seed in range(3):
        net = network(128, 128, seed)
        factors: list[Factor] = [Diagonal(np.ones_like(gradient)) for gradient in net.gradients]
        ratios.append(variances(net, factors, "joint") / variances(net, factors, "separate"))
    np.testing.assert_allclose(np.mean(ratios, axis=0)[:3], [290, 47, 7.5], rtol=0.33)


@pytest.mark.parametrize(("width", "expected"), [(128, 0.34), (512, 0.10)])
def test_fact_5_the_overlap_is_small_at_initialisation(width: int, expected: float) -> None:
    """Within a fifth, of layers with as many units above. Ten units above leave ten directions and an overlap of 1."""
    net = network(width, 16)
    squared = [
        overlap(gradient, orthogonal(weight, derivative, 10).left)[1]
        for gradient, weight, derivative in zip(net.gradients, net.weights[1:], net.derivatives, strict=False)
    ]
    assert np.mean(squared[:2]) == pytest.approx(expected, rel=0.2)
    assert squared[2] == pytest.approx(1.0, rel=1e-12)


def test_section_7_bias_and_variance_from_the_energy_curve_alone() -> None:
    """The general law and `theory.subspace`'s curves are two roads to the same bias, variance and efficiency."""
    net, k = network(32, 8), 5
    factors: list[Factor] = []
    curves = []
    for gradient, weight, derivative in zip(net.gradients, net.weights[1:], net.derivatives, strict=False):
        factors.append(orthogonal(weight, derivative, k))
        _, values, right = singular_triplets(weight, derivative)
        squares = np.sum(gradient**2, axis=1)
        curve = np.cumsum(np.einsum("bu,bum->bm", gradient, right) ** 2, axis=1) / squares[:, None]
        curves.append(energy_curves.OverlapCurve(curve, squares, np.sum(values > 1e-10, axis=1)))
    output = net.gradients[-1]
    factors.append(Diagonal(np.ones_like(output)))
    terms = subspace.orthogonal_terms(curves, energy_curves.Output(np.sum(output**2, axis=1), 10), np.array([k]))
    found = moments(net.gradients, factors, [3.0] * 4, [1.0] * 4, shared=False, slope="example", layers="joint")
    reported = quantities(net.gradients, [one.mean for one in found], [one.second_moment() for one in found])
    curved = subspace.activation_quantities(terms)
    np.testing.assert_allclose(reported["bias"] ** 2, curved.squared_bias[:, 0], rtol=1e-9, atol=1e-20)
    np.testing.assert_allclose(reported["variance"], curved.variance[:, 0], rtol=1e-10)
    np.testing.assert_allclose(reported["efficiency"], curved.efficiency[:, 0], rtol=1e-10)
