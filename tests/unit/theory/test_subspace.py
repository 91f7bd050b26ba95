"""Predictions from energy curves against the exact moments of small guesses, enumerated here in plain NumPy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.theory.small_nets import NAMES, Array, Net, agree, drawn_curves, passes
from theory import subspace
from theory.energy_curves import Output, OverlapCurve
from theory.subspace import Quantities
from theory.weight_cross_terms import cross_terms, orthogonal_cross_terms

# The law −√3, 0, √3 with weights 1/6, 4/6, 1/6 has the moments of a standard normal up to the fifth.
THREE_POINTS = (np.array([-np.sqrt(3), 0.0, np.sqrt(3)]), np.array([1, 4, 1]) / 6)
SIGNS = (np.array([-1.0, 1.0]), np.array([0.5, 0.5]))


def random_net(seed: int, units: tuple[int, ...], n_examples: int, alive: int) -> Net:
    """Gradients come down through the Jacobians; the first example has only ``alive`` units that pass anything."""
    rng = np.random.default_rng(seed)
    jacobians: list[Array] = []
    for below, above in itertools.pairwise(units):
        mask = np.ones((n_examples, below))
        mask[0, alive:] = 0
        jacobians.append(rng.normal(size=(above, below)) * mask[:, None])
    gradients = [rng.normal(size=(n_examples, units[-1]))]
    for jacobian in reversed(jacobians):
        gradients.insert(0, np.einsum("bnu,bn->bu", jacobian, gradients[0]))
    return Net(jacobians, gradients, [rng.normal(size=(n_examples, 2)) for _ in units])


def enumerated(
    net: Net,
    factors: list[Array],
    space: str,
    joint: bool = True,
    law: tuple[Array, Array] = THREE_POINTS,
    scale: float = 1.0,
) -> Quantities:
    """Every quantity of every tap and of all together, over all values that the noise can take."""
    values, weights = law
    widths = [factor.shape[2] for factor in factors]
    digits = np.indices((len(values),) * (net.n_examples * sum(widths))).reshape(net.n_examples * sum(widths), -1).T
    noise, probability = values[digits].reshape(-1, net.n_examples, sum(widths)), weights[digits].prod(1)
    parts = np.split(noise, np.cumsum(widths)[:-1], axis=2)
    directions = [np.einsum("bun,gbn->gbu", factor, part) for factor, part in zip(factors, parts, strict=True)]
    slopes = [np.einsum("gbu,bu->gb", y, g) for y, g in zip(directions, net.gradients, strict=True)]
    if joint:
        slopes = [sum(slopes[1:], slopes[0])] * len(slopes)
    guesses = [scale * t[..., None] * y for t, y in zip(slopes, directions, strict=True)]
    truths: list[Array] = net.gradients
    if space == "weight":
        guesses = [np.einsum("gbu,bi->gui", guess, x) for guess, x in zip(guesses, net.inputs, strict=True)]
        truths = [g.T @ x for g, x in zip(net.gradients, net.inputs, strict=True)]
    flat = [guess.reshape(len(guess), -1) for guess in guesses]
    flat_truths = [truth.reshape(-1) for truth in truths]
    rows = []
    for guess, truth in [*zip(flat, flat_truths, strict=True), (np.hstack(flat), np.hstack(flat_truths))]:
        mean, second = probability @ guess, probability @ np.sum(guess**2, axis=1)
        inner = mean @ truth
        rows.append(
            (
                np.sum((mean - truth) ** 2),
                probability @ np.sum((guess - mean) ** 2, axis=1),
                probability @ np.sum((guess - truth) ** 2, axis=1),
                inner**2 / (truth @ truth * second),
                inner / second,
            )
        )
    return Quantities(*(np.array(column)[:, None] for column in zip(*rows, strict=True)))


def setting(quantities: Quantities, index: int) -> Quantities:
    return Quantities(*(getattr(quantities, name)[:, index : index + 1] for name in NAMES))


# Two examples whose Jacobians differ in rank, 8 noise numbers to enumerate; one with wider layers, 7.
SMALL_NETS = {
    "two ranks": random_net(0, (3, 2, 1), 2, alive=1),
    "dead example": random_net(1, (3, 2, 1), 2, alive=0),
    "narrowing": random_net(2, (4, 3, 2), 1, alive=4),
    "widening": random_net(3, (2, 3, 2), 1, alive=4),
}
nets = pytest.mark.parametrize("net", SMALL_NETS.values(), ids=SMALL_NETS)


@nets
@passes
def test_every_k_of_the_orthogonal_guess_is_exact(net: Net, layers: subspace.Layers) -> None:
    ks = np.arange(1, 4)
    curves = net.curves()
    terms = subspace.orthogonal_terms(curves, net.output(), ks)
    activation = subspace.activation_quantities(terms, layers)
    cross = [
        orthogonal_cross_terms(*net.parts(layer), net.gradients[layer], net.inputs[layer], ks)
        for layer in range(len(curves))
    ]
    last = cross_terms(net.gradients[-1], net.gradients[-1], net.inputs[-1])
    repeated = replace(last, inner=np.repeat(last.inner, 3), mean_square=np.repeat(last.mean_square, 3))
    weight = subspace.weight_quantities(terms, [*cross, repeated], layers)
    for index, k in enumerate(ks):
        for space, predicted in (("activation", activation), ("weight", weight)):
            exact = enumerated(net, net.projectors(int(k)), space, layers == "joint")
            assert agree(setting(predicted, index), exact), (k, space)
            if space == "weight":
                alone = subspace.weight_variance(terms, [np.sum(x**2, axis=1) for x in net.inputs], layers)
                np.testing.assert_allclose(alone[:, index : index + 1], exact.variance, rtol=1e-10)
    # All directions: no bias, as the gradient lies in the row space of the Jacobian.
    np.testing.assert_allclose(activation.squared_bias[:, -1], 0, atol=1e-10)
    np.testing.assert_allclose(weight.squared_bias[:, -1], 0, atol=1e-10)


@nets
@passes
def test_the_upstream_guess_is_exact(net: Net, layers: subspace.Layers) -> None:
    terms = subspace.upstream_terms(net.spectra(), net.output())
    exact = enumerated(net, net.transposed(), "activation", layers == "joint")
    assert agree(subspace.activation_quantities(terms, layers), exact)
    means = [
        np.einsum("bnu,bnv,bv->bu", jacobian, jacobian, gradient)
        for jacobian, gradient in zip(net.jacobians, net.gradients, strict=False)
    ]
    cross = [cross_terms(*tap) for tap in zip([*means, net.gradients[-1]], net.gradients, net.inputs, strict=True)]
    exact = enumerated(net, net.transposed(), "weight", layers == "joint")
    assert agree(subspace.weight_quantities(terms, cross, layers), exact)


def test_wrong_guesses_and_wrong_predictions_are_caught() -> None:
    net = SMALL_NETS["two ranks"]
    curves, output, k = net.curves(), net.output(), np.array([1])

    def predicted(**changed: list[OverlapCurve]) -> Quantities:
        return subspace.activation_quantities(subspace.orthogonal_terms(changed.get("curves", curves), output, k))

    exact = enumerated(net, net.projectors(1), "activation")
    assert agree(predicted(), exact)
    assert not agree(predicted(), enumerated(net, net.projectors(1), "activation", scale=1.01))
    assert not agree(predicted(), enumerated(net, net.projectors(2), "activation"))
    assert not agree(predicted(), enumerated(net, net.projectors(1), "activation", joint=False))
    assert not agree(predicted(), enumerated(net, net.projectors(1), "activation", law=SIGNS))
    # The square left out of the overlap; the rank of every example taken for the largest one's.
    unsquared = [replace(curve, overlap=np.sqrt(curve.overlap)) for curve in curves]
    assert not agree(predicted(curves=unsquared), exact)
    full = [replace(curve, rank=np.full_like(curve.rank, curve.rank.max())) for curve in curves]
    assert not agree(
        subspace.activation_quantities(subspace.orthogonal_terms(full, output, np.array([2]))),
        enumerated(net, net.projectors(2), "activation"),
    )
    upstream = subspace.activation_quantities(subspace.upstream_terms(net.spectra(), output))
    assert not agree(upstream, enumerated(net, net.projectors(2), "activation"))


def test_one_layer_repeats_the_formula_of_the_design() -> None:
    # bias² (1−o²)‖g‖², variance T k + o²‖g‖², T = o²‖g‖² + ‖g_out‖².
    curve = OverlapCurve(np.array([[0.25, 0.5, 1.0]]), np.array([4.0]), np.array([3]))
    found = subspace.activation_quantities(
        subspace.orthogonal_terms([curve], Output(np.array([2.0]), 5), np.arange(1, 6)), "joint"
    )
    np.testing.assert_allclose(found.squared_bias[0], [3, 2, 0, 0, 0])
    np.testing.assert_allclose(found.variance[0], [3 * 1 + 1, 4 * 2 + 2, 6 * 3 + 4, 22, 22])
    np.testing.assert_allclose(found.variance[1], [3 * 5 + 2, 4 * 5 + 2, 6 * 5 + 2, 32, 32])
    np.testing.assert_allclose(found.mse, found.squared_bias + found.variance)
    kept = np.array([1.0, 2, 4, 4, 4])
    np.testing.assert_allclose(found.efficiency[0], kept**2 / (4 * (kept + found.variance[0])))


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
@settings(max_examples=25)
def test_scaling_the_loss_scales_bias_and_variance_and_leaves_efficiency_alone(seed: int, scale: float) -> None:
    curves, output = drawn_curves(seed)
    larger = [replace(curve, squared_gradient=scale * curve.squared_gradient) for curve in curves]
    ks = np.arange(1, 6)
    before = subspace.activation_quantities(subspace.orthogonal_terms(curves, output, ks))
    after = subspace.activation_quantities(
        subspace.orthogonal_terms(larger, replace(output, squared_gradient=scale * output.squared_gradient), ks)
    )
    np.testing.assert_allclose(after.variance, scale * before.variance, rtol=1e-9)
    np.testing.assert_allclose(after.mse, scale * before.mse, rtol=1e-9)
    np.testing.assert_allclose(after.efficiency, before.efficiency, rtol=1e-9)
    np.testing.assert_allclose(after.best_scale, before.best_scale, rtol=1e-9)
    known = ~np.isnan(before.efficiency)
    assert np.all((before.efficiency[known] >= 0) & (before.efficiency[known] <= 1))
    assert np.all(np.diff(before.squared_bias, axis=1) <= 1e-12 * before.mse[:, :-1])
