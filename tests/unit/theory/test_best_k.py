"""The best k from energy curves beats every other k."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.theory.small_nets import drawn_curves
from theory import subspace
from theory.best_k import best_k_of_each_layer, best_setting
from theory.energy_curves import Output, OverlapCurve


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
