"""Where singular values are equal, predictions are means over the bases of their span."""

import itertools
from dataclasses import replace

import numpy as np

from tests.unit.theory.small_nets import Array, Net, agree, passes
from theory import subspace
from theory.energy_curves import Output, OverlapCurve
from theory.subspace import Quantities
from theory.weight_cross_terms import CrossTerms, cross_terms, orthogonal_cross_terms


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


def test_an_orthogonal_jacobian_makes_both_guesses_one() -> None:
    rng = np.random.default_rng(3)
    jacobian = np.linalg.qr(rng.normal(size=(4, 4)))[0][None]
    output = rng.normal(size=(1, 4))
    net = Net([jacobian], [np.einsum("bnu,bn->bu", jacobian, output), output], [])
    upstream = subspace.activation_quantities(subspace.upstream_terms(net.spectra(), net.output()))
    orthogonal = subspace.activation_quantities(subspace.orthogonal_terms(net.curves(), net.output(), np.array([4])))
    assert agree(upstream, orthogonal)
