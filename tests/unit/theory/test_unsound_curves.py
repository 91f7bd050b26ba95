"""Energy curves and shapes that no network has are refused by name."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from theory import subspace
from theory.energy_curves import Output, OverlapCurve, UpstreamSpectrum
from theory.weight_cross_terms import cross_terms, orthogonal_cross_terms

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
