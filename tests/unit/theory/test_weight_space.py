"""Second moments in weight space against the enumeration of every noise value: any maps W, taps that share a layer.

Two examples; the first layer has two taps, as a module called twice has, the second one. Each map, factor, switch and
law is compared to 1e-10, and the negative controls are what goes wrong most easily: a layer's taps taken for layers of
their own, rows given to the wrong example, one noise vector in place of several.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from tests.enumerated import Array, Law, circle, guesses, product_law, signs, three_points
from theory import linear_guess
from theory.factors import Dense, Diagonal, Factor, LowRank
from theory.linear_guess import Layers, Slope, moments
from theory.weight_maps import RowInputs, WeightMap, WrittenOut, of_tap, placed
from theory.weight_space import covariances

EXAMPLES, NUMBERS = 2, 2
GROUPS = [[0, 1], [2]]
SWITCHES = list(itertools.product([False, True], ["example", "batch"], ["joint", "separate"]))


def two_circles() -> Law:
    """Two noise vectors, each on a circle: entries of different vectors are independent."""
    one = circle(2)
    pairs = list(itertools.product(range(len(one.points)), repeat=2))
    points = np.array([np.concatenate([one.points[i], one.points[j]]) for i, j in pairs])
    return Law(points, np.full(len(pairs), 1 / len(pairs)), one.fourth, one.pair)


class Problem:
    """Three taps of two numbers an example with noise of two entries, unless ``noise`` says otherwise."""

    def __init__(self, noise: int = 2, seed: int = 0):
        rng = np.random.default_rng(seed)
        arrays = [rng.normal(size=(EXAMPLES, NUMBERS, noise)) for _ in range(3)]
        left, right = rng.normal(size=(EXAMPLES, NUMBERS, 1)), rng.normal(size=(EXAMPLES, noise, 1))
        self.factors: list[Factor] = [Dense(arrays[0]), LowRank(left, right), Dense(arrays[2])]
        self.matrices = [arrays[0], left @ right.transpose(0, 2, 1), arrays[2]]
        if noise == NUMBERS:
            scale = rng.normal(size=(EXAMPLES, NUMBERS))
            self.factors[2], self.matrices[2] = Diagonal(scale), scale[:, :, None] * np.eye(NUMBERS)
        self.gradients = [rng.normal(size=(EXAMPLES, NUMBERS)) for _ in range(3)]
        # The first tap has two rows of a unit and three inputs, and some of the layer's four weights.
        rows = RowInputs(rng.normal(size=(EXAMPLES, 2, 1, 3)), 1, 4, np.array([3, 0, 2]))
        written = WrittenOut(rng.normal(size=(EXAMPLES, 4, NUMBERS)), 4)
        self.maps: list[WeightMap | None] = [rows, written, WrittenOut(rng.normal(size=(EXAMPLES, 3, NUMBERS)), 3)]

    def exact(self, laws: Sequence[Law], switches: tuple[bool, Slope, Layers]) -> list[Array]:
        """Cov of the examples' parts at the weights, traced: (example, example) a layer."""
        values, weights = guesses(self.gradients, self.matrices, laws, *switches)
        found = []
        for group in GROUPS:
            parts = [written(self.maps[tap], values[tap]) for tap in group]
            total = np.sum(parts, axis=0)  # (point, example, weight)
            mean = np.einsum("p,pew->ew", weights, total)
            found.append(np.einsum("p,pew,pfw->ef", weights, total - mean, total - mean))
        return found

    def predicted(
        self,
        laws: Sequence[Law],
        switches: tuple[bool, Slope, Layers],
        vectors: int = 1,
        groups: Sequence[Sequence[int]] = GROUPS,
    ) -> list[Array]:
        shared, slope, layers = switches
        known = [linear_guess.Law(law.fourth, law.pair, vectors) for law in laws]
        return covariances(
            self.gradients, self.factors, self.maps, groups, known, shared=shared, slope=slope, layers=layers
        )


def written(weight_map: WeightMap | None, values: Array) -> Array:
    """(point, example, number) → (point, example, weight), point by point."""
    assert weight_map is not None
    return np.stack([placed(weight_map, weight_map.apply(point)) for point in values])


def furthest(found: Sequence[Array], exact: Sequence[Array]) -> float:
    scale = max(float(np.abs(other).max()) for other in exact)
    return max(float(np.abs(one - other).max()) for one, other in zip(found, exact, strict=True)) / scale


@pytest.mark.slow
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s)))
@pytest.mark.parametrize("law", [signs(2), three_points(2), circle(2)], ids=["signs", "three_points", "circle"])
def test_covariances_are_those_of_the_enumeration(law: Law, switches: tuple[bool, Slope, Layers]) -> None:
    if not switches[0] and len(law.points) > 6:
        law = signs(2)  # Nine points in each of six vectors are half a million: the law is tried with shared noise.
    problem = Problem()
    assert furthest(problem.predicted([law] * 3, switches), problem.exact([law] * 3, switches)) < 1e-10


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s)))
def test_several_noise_vectors_of_an_example(switches: tuple[bool, Slope, Layers]) -> None:
    """Two vectors on circles at the first tap, a sign at the others."""
    problem = Problem(noise=4)
    laws = [two_circles(), product_law([-1, 1], [0.5, 0.5], 1.0, 1), product_law([-1, 1], [0.5, 0.5], 1.0, 1)]
    problem.matrices = [problem.matrices[0], problem.matrices[1][:, :, :1], problem.matrices[2][:, :, :1]]
    problem.factors = [Dense(matrix) for matrix in problem.matrices]
    shared, slope, layers = switches
    known = [linear_guess.Law(laws[0].fourth, laws[0].pair, 2), *(linear_guess.Law(1.0, 1.0) for _ in range(2))]
    exact = problem.exact(laws, switches)

    def predicted(law: linear_guess.Law) -> list[Array]:
        every = [law, *known[1:]]
        return covariances(
            problem.gradients, problem.factors, problem.maps, GROUPS, every, shared=shared, slope=slope, layers=layers
        )

    assert furthest(predicted(known[0]), exact) < 1e-10
    assert furthest(predicted(linear_guess.Law(laws[0].fourth, laws[0].pair, 1)), exact) > 1e-2, "one vector of four"
    at_taps = moments(
        problem.gradients,
        problem.factors,
        [law.fourth for law in laws],
        [law.pair for law in laws],
        [2, 1, 1],
        shared=shared,
        slope=slope,
        layers=layers,
    )
    values, weights = guesses(problem.gradients, problem.matrices, laws, *switches)
    for tap, found in enumerate(at_taps):
        mean = np.einsum("p,pen->en", weights, values[tap])
        spread = values[tap] - mean
        np.testing.assert_allclose(found.variances, np.einsum("p,pen->en", weights, spread**2), rtol=1e-10, atol=1e-14)
        expected = np.einsum("p,pen,pfn->ef", weights, spread, spread)
        np.testing.assert_allclose(found.covariances, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s)))
def test_a_tap_taken_for_a_layer_of_its_own_is_caught(switches: tuple[bool, Slope, Layers]) -> None:
    """Parameters counted once for every tap: what the taps have in common is left out."""
    problem, law = Problem(), signs(2)
    alone = problem.predicted([law] * 3, switches, groups=[[0], [1], [2]])
    wrong = [alone[0] + alone[1], alone[2]]
    error = furthest(wrong, problem.exact([law] * 3, switches))
    # With independent noise and passes of their own, the taps of a layer have nothing in common.
    assert error < 1e-10 if switches == (False, "example", "separate") else switches[2] == "separate" or error > 1e-2


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s)))
def test_rows_given_to_the_wrong_example_are_caught(switches: tuple[bool, Slope, Layers]) -> None:
    problem, law = Problem(), signs(2)
    exact = problem.exact([law] * 3, switches)
    rows = problem.maps[0]
    assert isinstance(rows, RowInputs)
    exchanged = rows.inputs.copy()
    exchanged[[0, 1], 0] = exchanged[[1, 0], 0]
    problem.maps[0] = RowInputs(exchanged, 1, 4, rows.places)
    assert furthest(problem.predicted([law] * 3, switches), exact) > 1e-4, "a million times the bar above"


@pytest.mark.parametrize("slope", ["example", "batch"])
def test_what_is_in_the_slope_beside_the_layers(slope: Slope) -> None:
    """A tap left out and given as ``outside``: what it adds to two examples' slopes."""
    problem, law = Problem(), signs(2)
    for shared in (False, True):
        exact = problem.exact([law] * 3, (shared, slope, "joint"))
        pulled = [f.pull(g) for f, g in zip(problem.factors, problem.gradients, strict=True)]
        outside = pulled[2] @ pulled[2].T if shared else np.diag(np.sum(pulled[2] ** 2, axis=1))
        laws = [linear_guess.Law(law.fourth, law.pair)] * 2
        found = covariances(
            problem.gradients[:2],
            problem.factors[:2],
            problem.maps[:2],
            GROUPS[:1],
            laws,
            outside=outside,
            shared=shared,
            slope=slope,
            layers="joint",
        )
        assert furthest(found, exact[:1]) < 1e-10


def test_row_inputs_are_what_they_are_written_out() -> None:
    """Groups of units, as in a grouped convolution, against the same map as an array; and a map of one example."""
    rng = np.random.default_rng(5)
    rows = RowInputs(rng.normal(size=(3, 4, 2, 5)), 3, 30)
    basis = np.eye(4 * 2 * 3)
    array = np.stack([rows.apply(np.repeat(unit[None], 3, 0)) for unit in basis], axis=2)
    dense = WrittenOut(array, 30)
    vectors, weights = rng.normal(size=(3, 24)), rng.normal(size=30)
    expected = np.zeros((3, 2, 3, 5))
    apart = vectors.reshape(3, 4, 2, 3)
    for example, row, group, unit in np.ndindex(3, 4, 2, 3):
        expected[example, group, unit] += apart[example, row, group, unit] * rows.inputs[example, row, group]
    for weight_map in (rows, dense):
        np.testing.assert_allclose(weight_map.apply(vectors), expected.reshape(3, 30))
        np.testing.assert_allclose(weight_map.squared_norms(vectors), (expected**2).sum((1, 2, 3)))
        np.testing.assert_allclose(weight_map.column_squares(), (array**2).sum(1))
        by_row = [weight_map.squared_norms(vectors * (np.arange(24) // 6 == row)) for row in range(4)]
        np.testing.assert_allclose(weight_map.row_squares(vectors, 4), np.stack(by_row, axis=1))
        np.testing.assert_allclose(
            np.sum(weight_map.transposed(weights) * vectors), np.sum(expected.reshape(3, -1) @ weights)
        )
    alone = RowInputs(rows.inputs[:, :1], 3, 30)
    np.testing.assert_allclose(
        alone.squared_norms(vectors[:, :6]),
        np.sum(alone.apply(vectors[:, :6]) ** 2, axis=1),
        err_msg="a row an example",
    )
    of_batch = RowInputs(rows.inputs[:1], 3, 30)
    np.testing.assert_allclose(of_batch.apply(vectors)[0], rows.apply(vectors)[0])
    assert of_batch.apply(vectors).shape == (3, 30), "one map for all examples"


def test_weights_of_a_tap_in_their_layer() -> None:
    part = RowInputs(np.ones((1, 1, 1, 3)), 1, 5, np.array([4, 0, 2]))
    np.testing.assert_array_equal(placed(part, np.array([[1.0, 2.0, 3.0]])), [[2.0, 0.0, 3.0, 0.0, 1.0]])
    np.testing.assert_array_equal(of_tap(part, np.array([2.0, 9.0, 3.0, 9.0, 1.0])), [1.0, 2.0, 3.0])


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs must be \(example, row, group, input\) of float64"):
        RowInputs(np.ones((2, 3)), 1, 3)
    with pytest.raises(ValueError, match=r"array must be \(example, weight, number\) of float64"):
        WrittenOut(np.ones((2, 3)), 3)
    problem, law = Problem(), linear_guess.Law(3.0, 1.0)
    with pytest.raises(ValueError, match="must have one entry a tap"):
        covariances(
            problem.gradients,
            problem.factors,
            problem.maps,
            GROUPS,
            [law],
            shared=False,
            slope="example",
            layers="joint",
        )
    with pytest.raises(ValueError, match="tap 0 is in a group but has no weight map"):
        covariances(
            problem.gradients,
            problem.factors,
            [None] * 3,
            GROUPS,
            [law] * 3,
            shared=False,
            slope="example",
            layers="joint",
        )
