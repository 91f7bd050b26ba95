"""Leading modes of a large matrix by a random sketch: their bounds hold, and they follow from the seed."""

import numpy as np
import pytest
import scipy.linalg

from fganalysis.measuring import subspace
from tests.unit.measuring.subspace.matrices import Floats, with_spectrum


@pytest.mark.parametrize("spectrum", ["steep", "slow", "flat"])
def test_randomised_bounds_hold(spectrum: str) -> None:
    rng = np.random.default_rng(14)
    order = np.arange(80.0)
    spectra: dict[str, Floats] = {"steep": 0.5**order, "slow": 1.0 / (1 + order), "flat": 1 - order / 1000}
    values = spectra[spectrum]
    matrix, right = with_spectrum(rng, 120, 90, values)
    for power_iterations in (0, 2):
        found = subspace.randomised_modes(matrix, 8, seed=0, power_iterations=power_iterations)
        kept = found.modes.values
        assert np.all(kept <= values[:8] + 1e-12)
        assert np.all(values[:8] ** 2 <= kept**2 + found.remainder**2 + 1e-12)
        nearest = np.abs(kept[:, None] - np.append(values, 0)).min(-1)
        assert np.all(nearest <= found.error + 1e-12)
    if spectrum == "steep":
        np.testing.assert_allclose(kept, values[:8], rtol=1e-8)
        assert found.error.max() < 1e-8
        angles = subspace.principal_angles(found.modes.leading(8), np.ascontiguousarray(right[:, :8]))
        np.testing.assert_allclose(angles, 0, atol=1e-8)
    if spectrum == "flat":  # where the method fails it says so
        assert found.remainder > 1
        assert found.error.max() > 1e-4


def test_randomised_modes_depend_on_the_seed_alone_and_are_exact_when_the_sketch_is_complete() -> None:
    matrix = np.random.default_rng(15).normal(size=(12, 30))
    first, again, other = (subspace.randomised_modes(matrix, 3, seed=seed, oversampling=4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.modes.values, again.modes.values)
    assert not np.allclose(first.modes.values, other.modes.values, rtol=1e-12)
    # Without oversampling the sketched range is that of the modes, and what they lack is known.
    bare = subspace.randomised_modes(matrix, 3, seed=1, oversampling=0)
    np.testing.assert_allclose(bare.remainder**2, np.sum(matrix**2) - np.sum(bare.modes.values**2), rtol=1e-10)
    whole = subspace.randomised_modes(matrix, 12, seed=0)
    np.testing.assert_allclose(whole.modes.values, scipy.linalg.svdvals(matrix), rtol=1e-8)
    assert whole.remainder < 1e-12
    nothing = subspace.randomised_modes(np.zeros((5, 4)), 2, seed=0)
    assert nothing.modes.rank == 0
    assert nothing.remainder == 0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_randomised_bounds_do_not_see_scale(scale: float) -> None:
    matrix = np.random.default_rng(18).normal(size=(120, 100))
    whole, scaled = (
        subspace.randomised_modes(size * matrix, 3, seed=0, oversampling=0, power_iterations=0) for size in (1, scale)
    )
    np.testing.assert_allclose(scaled.modes.values / scale, whole.modes.values, rtol=1e-10)
    np.testing.assert_allclose(scaled.error / scale, whole.error, rtol=1e-10)
    np.testing.assert_allclose(scaled.remainder / scale, whole.remainder, rtol=1e-10)
    assert whole.remainder > 1


def test_randomised_modes_refuse_by_name() -> None:
    matrix = np.ones((5, 4))
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k must be between 1 and 4, the smaller side of the matrix, got {k}"):
            subspace.randomised_modes(matrix, k, seed=0)
    with pytest.raises(ValueError, match=r"matrix must be \(example, unit\), got the shape \(2, 5, 4\)"):
        subspace.randomised_modes(np.ones((2, 5, 4)), 1, seed=0)
    with pytest.raises(ValueError, match="oversampling must be a whole number of at least 0, got -1"):
        subspace.randomised_modes(matrix, 1, seed=0, oversampling=-1)
