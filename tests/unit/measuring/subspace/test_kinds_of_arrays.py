"""Arrays and tensors give the same numbers, and what no function can take is refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fganalysis.measuring import gradient_stream, subspace


def descending(array: Any) -> Any:
    return np.sort(array)[..., ::-1] if isinstance(array, np.ndarray) else array.sort(descending=True).values


ONE_ARRAY: dict[str, Callable[[Any], Any]] = {
    "singular_values": subspace.singular_values,
    "modes": lambda array: subspace.modes(array).values,
    "randomised_modes": lambda array: subspace.randomised_modes(array, 1, seed=0).modes.values,
    "energy_curve": lambda array: subspace.energy_curve(descending(array)),
    "stable_rank": subspace.stable_rank,
    "entropy_rank": subspace.entropy_rank,
    "participation_ratio": subspace.participation_ratio,
    "srank": lambda array: subspace.srank(descending(array)),
    "modes_for_energy": lambda array: subspace.modes_for_energy(descending(array)),
    "overlap_curve": lambda array: subspace.overlap_curve(array, array),
    "principal_angles": lambda array: subspace.principal_angles(array, array),
    "streaming": lambda array: gradient_stream.StreamingSubspace.of(array).modes().values,
    "incremental": lambda array: gradient_stream.IncrementalSubspace.of(array, rank=2).modes().values,
}

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("name", ONE_ARRAY)
def test_tensors_give_the_numbers_of_arrays(name: str) -> None:
    array = np.abs(np.linalg.qr(np.eye(3)[::-1])[0])  # orthonormal and not negative: sound input for all of them
    expected = ONE_ARRAY[name](array)
    assert isinstance(expected, np.ndarray | np.generic)
    for device in DEVICES:
        found = ONE_ARRAY[name](torch.tensor(array, dtype=torch.float32, device=device, requires_grad=True))
        assert isinstance(found, torch.Tensor)
        assert found.device.type == device
        assert not found.requires_grad
        assert found.dtype in (torch.float64, torch.int64)
        np.testing.assert_allclose(found.cpu().numpy(), np.asarray(expected), rtol=1e-8)


@pytest.mark.parametrize("name", ONE_ARRAY)
def test_unsound_arrays_are_refused_by_name(name: str) -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite entries"):
            ONE_ARRAY[name](np.diag([1.0, bad]))
    with pytest.raises(ValueError, match="none empty, got"):
        ONE_ARRAY[name](np.ones((0, 3)))
    with pytest.raises(ValueError, match="arrays must hold float32 or float64 numbers, got int64"):
        ONE_ARRAY[name](np.eye(2, dtype=np.int64))
    with pytest.raises(ValueError, match="arrays must hold float32 or float64 numbers, got float16"):
        ONE_ARRAY[name](torch.eye(2, dtype=torch.float16))


def test_other_mistakes_are_refused_by_name() -> None:
    listed: Any = [[1.0, 2.0]]
    with pytest.raises(ValueError, match="matrix must be a NumPy array or a torch tensor, got a list"):
        subspace.singular_values(listed)
    with pytest.raises(ValueError, match=r"matrix must have at least 2 dimensions, none empty, got \(3,\)"):
        subspace.modes(np.ones(3))
    with pytest.raises(ValueError, match="singular values must not be negative"):
        subspace.stable_rank(np.array([1.0, -1.0]))
    tensor: Any = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="one kind and device, got a NumPy array and a tensor on cpu"):
        subspace.overlap_curve(np.ones(3), tensor)
    with pytest.raises(ValueError, match="arrays must have the same number of units, got 4 and 3"):
        subspace.overlap_curve(np.ones(4), np.eye(3))
    with pytest.raises(ValueError, match="arrays must have the same number of units, got 3 and 4"):
        subspace.principal_angles(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match=r"leading dimensions must broadcast, got \(2,\) and \(5,\)"):
        subspace.overlap_curve(np.ones((2, 3)), np.stack([np.eye(3)] * 5))
    with pytest.raises(ValueError, match=r"leading dimensions must broadcast, got \(2,\) and \(5,\)"):
        subspace.principal_angles(np.stack([np.eye(3)] * 2), np.stack([np.eye(3)] * 5))
    sparse: Any = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match="matrix must be a dense tensor, not a sparse or nested one"):
        subspace.singular_values(sparse)
    rising = np.array([1.0, 2.0, 3.0])
    for curve in (subspace.energy_curve, subspace.modes_for_energy):
        with pytest.raises(ValueError, match="singular values must be in descending order"):
            curve(rising)
    share: Any = "a"
    with pytest.raises(ValueError, match="share must be a finite number above 0 and at most 1, got 'a'"):
        subspace.modes_for_energy(rising[::-1], share)


NOT_WHOLE: dict[str, Callable[[Any], Any]] = {
    "k": lambda number: subspace.modes(np.eye(3)).leading(number),
    "unit": lambda number: subspace.random_overlap(1, number),
    "rank": lambda number: gradient_stream.IncrementalSubspace.of(np.eye(3), number),
    "seed": lambda number: subspace.randomised_modes(np.eye(3), 1, seed=number),
    "oversampling": lambda number: subspace.randomised_modes(np.eye(3), 1, seed=0, oversampling=number),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_numbers_that_are_not_whole_are_refused_by_name(name: str) -> None:
    for number in (2.0, 2.5, np.nan, "a", True):
        with pytest.raises(ValueError, match=f"{name} must be a whole number.*, got {number!r}"):
            NOT_WHOLE[name](number)
    nothing = np.array([], dtype=np.int64)
    for dimensions in (2.5, np.nan, nothing, np.array([2.5]), np.array([True]), np.array(["2"])):
        with pytest.raises(ValueError, match=r"k must be a whole number.*, got"):
            subspace.random_overlap(dimensions, 10)  # type: ignore[arg-type]
