"""Predictions from energy curves against the exact moments of small guesses, enumerated here in plain NumPy."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from theory import subspace
from theory.best_k import best_k_of_each_layer, best_setting
from theory.energy_curves import Output, OverlapCurve, UpstreamSpectrum
from theory.subspace import Quantities
from theory.weight_cross_terms import CrossTerms, cross_terms, orthogonal_cross_terms

Array = NDArray[np.float64]
# The law −√3, 0, √3 with weights 1/6, 4/6, 1/6 has the moments of a standard normal up to the fifth.
THREE_POINTS = (np.array([-np.sqrt(3), 0.0, np.sqrt(3)]), np.array([1, 4, 1]) / 6)
SIGNS = (np.array([-1.0, 1.0]), np.array([0.5, 0.5]))
NAMES = ("squared_bias", "variance", "mse", "efficiency", "best_scale")


@dataclass(frozen=True)
class Net:
    """Jacobians (example, next_unit, unit), gradients (example, unit) and inputs (example, input), tap by tap."""

    jacobians: list[Array]
    gradients: list[Array]
    inputs: list[Array]

    @property
    def n_examples(self) -> int:
        return len(self.gradients[0])

    def output(self) -> Output:
        return Output(np.sum(self.gradients[-1] ** 2, axis=1), self.gradients[-1].shape[1])

    def svd(self, layer: int) -> tuple[Array, Array, Array]:
        """Left vectors, singular values and right vectors (example, unit, mode), the vectors zero beyond the rank."""
        left, values, right = np.linalg.svd(self.jacobians[layer], full_matrices=False)
        kept = values > 1e-12 * values[:, :1]
        return left * kept[:, None], values * kept, np.swapaxes(right, 1, 2) * kept[:, None]

    def curves(self) -> list[OverlapCurve]:
        curves = []
        for layer, gradient in enumerate(self.gradients[:-1]):
            _, values, right = self.svd(layer)
            components = np.einsum("bu,bum->bm", gradient, right) ** 2
            squared = np.sum(gradient**2, axis=1)
            zero = np.full_like(components, np.nan)
            overlap = np.divide(np.cumsum(components, 1), squared[:, None], out=zero, where=squared[:, None] > 0)
            curves.append(OverlapCurve(overlap, squared, np.sum(values > 0, 1)))
        return curves

    def parts(self, layer: int) -> tuple[Array, NDArray[np.bool_]]:
        """v_i v_iᵀg (example, unit, mode), and no two singular values equal."""
        right = self.svd(layer)[2]
        along = np.einsum("bu,bum->bm", self.gradients[layer], right)
        return right * along[:, None], np.zeros(along.shape, dtype=bool)

    def spectra(self) -> list[UpstreamSpectrum]:
        spectra = []
        for layer, gradient in enumerate(self.gradients[:-1]):
            _, values, right = self.svd(layer)
            components = np.einsum("bu,bum->bm", gradient, right) ** 2
            spectra.append(UpstreamSpectrum(values, components, np.sum(gradient**2, axis=1)))
        return spectra

    def projectors(self, k: int) -> list[Array]:
        """A of the orthogonal guess, (example, unit, noise), tap by tap."""
        factors = []
        for layer in range(len(self.jacobians)):
            left, _, right = self.svd(layer)
            factors.append(np.einsum("bum,bnm->bun", right[..., :k], left[..., :k]))
        return [*factors, self.identity()]

    def transposed(self) -> list[Array]:
        """A of the upstream guess."""
        return [*(np.swapaxes(jacobian, 1, 2) for jacobian in self.jacobians), self.identity()]

    def identity(self) -> Array:
        units = self.gradients[-1].shape[1]
        return np.broadcast_to(np.eye(units), (self.n_examples, units, units))


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


def agree(predicted: Quantities, exact: Quantities) -> bool:
    pairs = [(getattr(predicted, name), getattr(exact, name)) for name in NAMES]
    return all(np.shape(p) == np.shape(e) and np.allclose(p, e, rtol=1e-9, atol=1e-10) for p, e in pairs)


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
passes = pytest.mark.parametrize("layers", ["joint", "separate"])


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


@passes
def test_between_equal_singular_values_it_is_the_mean_over_bases_of_their_span(layers: subspace.Layers) -> None:
    """Each example draws its basis alone. All that is asked for is linear in V_kV_kᵀ, whose mean over the c cyclic
    orders of one basis is that over all bases: c² pairs of orders for two examples are the whole law."""
    rng = np.random.default_rng(7)
    gradient, inputs, output = rng.normal(size=(2, 6)), rng.normal(size=(2, 3)), rng.normal(size=(2, 2))
    basis = np.linalg.qr(rng.normal(size=(2, 6, 4)))[0]
    spans = [[0], [1, 2, 3]]
    ks = np.arange(1, 5)

    def terms(right: Array, tied: bool) -> tuple[subspace.GuessTerms, list[CrossTerms]]:
        along = np.einsum("bu,bum->bm", gradient, right)
        parts, components, equal = right * along[:, None], along**2, np.zeros((2, 4), dtype=bool)
        for span in spans if tied else []:
            parts[:, :, span] = parts[:, :, span].mean(2, keepdims=True)
            components[:, span] = components[:, span].mean(1, keepdims=True)
            equal[:, span[:-1]] = True
        squared = np.sum(gradient**2, axis=1)
        curve = OverlapCurve(np.cumsum(components, 1) / squared[:, None], squared, np.array([4, 4]))
        found = subspace.orthogonal_terms([curve], Output(np.sum(output**2, axis=1), 2), ks)
        last = cross_terms(output, output, inputs)
        repeated = replace(last, inner=np.repeat(last.inner, 4), mean_square=np.repeat(last.mean_square, 4))
        return found, [orthogonal_cross_terms(parts, equal, gradient, inputs, ks), repeated]

    def quantities(right: Array, tied: bool) -> list[Quantities]:
        found, cross = terms(right, tied)
        return [subspace.activation_quantities(found, layers), subspace.weight_quantities(found, cross, layers)]

    orders = [[0, *np.roll([1, 2, 3], shift)] for shift in range(3)]
    drawn = [
        quantities(np.stack([basis[0][:, one], basis[1][:, other]]), tied=False)
        for one, other in itertools.product(orders, orders)
    ]
    for space, predicted in enumerate(quantities(basis, tied=True)):
        every = [one[space] for one in drawn]
        for name in ("squared_bias", "variance", "mse"):
            mean = np.mean([getattr(one, name) for one in every], axis=0)
            np.testing.assert_allclose(getattr(predicted, name), mean, rtol=1e-10, atol=1e-10)
        # Ratios are those of a basis drawn with every guess: of mean ⟨ḡ, g⟩ and mean E‖ĝ‖², not their mean ratio.
        second = [np.divide(one.efficiency, one.best_scale**2) for one in every]
        inner = [one.best_scale * size for one, size in zip(every, second, strict=True)]
        scale = np.mean(inner, axis=0) / np.mean(second, axis=0)
        np.testing.assert_allclose(predicted.best_scale, scale, rtol=1e-10)
        np.testing.assert_allclose(predicted.efficiency, scale * np.mean(inner, axis=0), rtol=1e-10)
        # Negative control: one of the bases alone says something else, inside the span and not at its ends.
        apart = np.abs(every[0].variance - predicted.variance).max(0)
        assert (apart[[1, 2]] > 1e-3).all() and (apart[[0, 3]] < 1e-10).all()


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


def test_an_orthogonal_jacobian_makes_both_guesses_one() -> None:
    rng = np.random.default_rng(3)
    jacobian = np.linalg.qr(rng.normal(size=(4, 4)))[0][None]
    output = rng.normal(size=(1, 4))
    net = Net([jacobian], [np.einsum("bnu,bn->bu", jacobian, output), output], [])
    upstream = subspace.activation_quantities(subspace.upstream_terms(net.spectra(), net.output()))
    orthogonal = subspace.activation_quantities(subspace.orthogonal_terms(net.curves(), net.output(), np.array([4])))
    assert agree(upstream, orthogonal)


def drawn_curves(
    seed: int, n_layers: int = 2, modes: int = 5, n_examples: int = 3
) -> tuple[list[OverlapCurve], Output]:
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(n_layers):
        rank = rng.integers(0, modes + 1, n_examples)
        energy = rng.gamma(0.3, size=(n_examples, modes)) * (np.arange(modes) < rank[:, None])
        total = energy.sum(1, keepdims=True)
        overlap = np.divide(np.cumsum(energy, 1), total, out=np.full_like(energy, np.nan), where=total > 0)
        curves.append(OverlapCurve(overlap, rng.gamma(0.5, size=n_examples) * (rank > 0), rank))
    return curves, Output(rng.gamma(1.0, size=n_examples), 3)


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


@given(seed=st.integers(0, 10_000), layers=st.sampled_from(["joint", "separate"]))
@settings(max_examples=25)
def test_the_best_k_of_each_layer_beats_every_common_k_and_every_change_of_one(
    seed: int, layers: subspace.Layers
) -> None:
    curves, output = drawn_curves(seed)
    found = best_k_of_each_layer(curves, output, layers)
    everything = np.array(list(itertools.product(range(1, 6), repeat=2)))
    efficiency = subspace.activation_quantities(
        subspace.orthogonal_terms(curves, output, everything), layers
    ).efficiency[-1]
    reached = efficiency[np.all(everything == found, axis=1)][0]
    assert reached >= efficiency[everything[:, 0] == everything[:, 1]].max() * (1 - 1e-12)
    one_changed = np.sum(everything != found, axis=1) == 1
    assert reached >= efficiency[one_changed].max() * (1 - 1e-12)


def test_best_setting_is_that_of_highest_efficiency() -> None:
    # Nearly all energy in the first direction of one layer, evenly spread over five in the other.
    steep = OverlapCurve(np.array([[0.96, 0.97, 0.98, 0.99, 1.0]]), np.array([1.0]), np.array([5]))
    even = OverlapCurve(np.array([[0.2, 0.4, 0.6, 0.8, 1.0]]), np.array([1.0]), np.array([5]))
    ks = np.arange(1, 6)
    terms = subspace.orthogonal_terms([steep, even], Output(np.array([0.1]), 2), ks)
    best = best_setting(subspace.activation_quantities(terms, "separate"))
    np.testing.assert_array_equal(ks[best[:2]], [1, 5])
    both = best_k_of_each_layer([steep, even], Output(np.array([0.1]), 2), "separate")
    assert both[0] == 1
    dead = OverlapCurve(np.full((1, 3), np.nan), np.zeros(1), np.array([0]))
    nothing = subspace.activation_quantities(subspace.orthogonal_terms([dead], Output(np.zeros(1), 2), ks))
    np.testing.assert_array_equal(best_setting(nothing), [-1, -1, -1])
    assert np.isnan(nothing.efficiency).all()
    with pytest.raises(ValueError, match="there is no best k: every gradient is zero"):
        best_k_of_each_layer([dead], Output(np.zeros(1), 2))


# What is refused

ONE = np.ones(1)
CURVE = OverlapCurve(np.array([[0.5, 1.0]]), ONE, np.array([2]))


@pytest.mark.parametrize("overlap", [[[0.5, 0.4]], [[0.5, 1.1]], [[-0.1, 0.5]], [[0.5, np.nan]]])
def test_impossible_curves_are_refused(overlap: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="an overlap curve must rise from 0 to at most 1"):
        OverlapCurve(np.array(overlap), ONE, np.array([2]))


def test_unsound_input_is_refused_by_name() -> None:
    pair = np.array([[0.5, 1.0]])
    with pytest.raises(
        ValueError, match=r"a curve must be \(example, mode\), not empty, with squared_gradient and rank"
    ):
        OverlapCurve(pair, np.ones(2), np.array([2]))
    with pytest.raises(ValueError, match="rank must be finite and not negative"):
        OverlapCurve(pair, ONE, np.array([-1]))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="squared_gradient must be finite and not negative"):
            OverlapCurve(pair, np.array([bad]), np.array([2]))
        with pytest.raises(ValueError, match="squared_gradient must be finite and not negative"):
            Output(np.array([bad]), 2)
        with pytest.raises(ValueError, match="singular_values must be finite and not negative"):
            UpstreamSpectrum(np.array([[1.0, bad]]), pair, ONE)
    with pytest.raises(ValueError, match="components must have the shape of singular_values"):
        UpstreamSpectrum(np.ones((1, 3)), pair, ONE)
    with pytest.raises(ValueError, match="the components of a gradient must not add up to more than its square"):
        UpstreamSpectrum(pair, pair, ONE)
    with pytest.raises(ValueError, match="the output needs squared gradients"):
        Output(ONE, 0)


def test_settings_and_shapes_that_do_not_fit_are_refused_by_name() -> None:
    output = Output(ONE, 2)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        subspace.orthogonal_terms([CURVE], output, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"ks must be \(setting,\) or \(setting, 1\), got the shape \(3, 2\)"):
        subspace.orthogonal_terms([CURVE], output, np.ones((3, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="the curve of layer 0 ends at 2 modes, below the k and rank 3"):
        subspace.orthogonal_terms([replace(CURVE, rank=np.array([9]))], output, np.array([3]))
    with pytest.raises(ValueError, match=r"all layers must have the same examples, got \[1, 2\] of them"):
        subspace.orthogonal_terms([CURVE], Output(np.ones(2), 2), np.array([1]))
    terms = subspace.orthogonal_terms([CURVE], output, np.array([1, 2]))
    wrong: Any = "both"
    with pytest.raises(ValueError, match="layers must be 'joint' or 'separate', got 'both'"):
        terms.variance(wrong)
    with pytest.raises(ValueError, match="squared_inputs must be 2 arrays of 1 examples"):
        subspace.weight_variance(terms, [ONE])
    with pytest.raises(ValueError, match="squared_input must be finite and not negative"):
        subspace.weight_variance(terms, [ONE, -ONE])
    cross = cross_terms(np.ones((1, 3)), np.ones((1, 3)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="cross terms must have one value a setting, 2, got"):
        subspace.weight_quantities(terms, [cross, cross])
    with pytest.raises(ValueError, match=r"mean and gradients must be \(example, unit\)"):
        cross_terms(np.ones((2, 3)), np.ones((1, 3)), np.ones((1, 2)))
    parts, tied = np.ones((1, 3, 2)), np.zeros((1, 2), dtype=bool)
    for wrong_parts, wrong_tied in ((np.ones((2, 3)), tied), (parts, tied[:, :1])):
        with pytest.raises(ValueError, match=r"parts must be \(example, unit, mode\) and tied \(example, mode\)"):
            orthogonal_cross_terms(wrong_parts, wrong_tied, np.ones((1, 3)), np.ones((1, 2)), np.array([1]))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        orthogonal_cross_terms(parts, tied, np.ones((1, 3)), np.ones((1, 2)), np.array([0]))
