"""Checks of arrays: NumPy arrays or torch tensors, which are checked and converted to double precision.

Raises ValueError for other kinds and data types, masked arrays, tensors without data, mixed kinds, empty arrays, NaN or
infinite entries, and shapes that do not fit each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import described

ArrayOrTensor = TypeVar("ArrayOrTensor", NDArray[Any], Tensor)


def double(array: ArrayOrTensor, name: str, least_dims: int) -> Tensor:
    """The checked array as a tensor of double precision on its device."""
    if not isinstance(array, np.ndarray | Tensor):
        raise ValueError(f"{name} must be a NumPy array or a torch tensor, got {described(array)}")
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: fill or leave out what is masked first")
    if isinstance(array, Tensor) and (array.layout != torch.strided or array.is_nested):
        raise ValueError(f"{name} must be a dense tensor, not a sparse or nested one")
    if isinstance(array, Tensor) and array.is_meta:
        raise ValueError(f"{name} is a tensor on the device 'meta', which holds no numbers")
    precision(array)
    if array.ndim < least_dims or 0 in array.shape:
        raise ValueError(f"{name} must have at least {least_dims} dimensions, none empty, got {tuple(array.shape)}")
    if isinstance(array, Tensor):
        tensor = array.detach().double()
    else:
        tensor = torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} has NaN or infinite entries")
    return tensor


def like(tensor: Tensor, array: ArrayOrTensor) -> ArrayOrTensor:
    """A result as an array of the same kind as ``array``."""
    return tensor if isinstance(array, Tensor) else tensor.numpy()


def precision(array: ArrayOrTensor) -> float:
    """The machine precision of the array's data type."""
    name = str(array.dtype).removeprefix("torch.") if isinstance(array, Tensor) else array.dtype.name
    if name not in ("float32", "float64"):
        raise ValueError(f"arrays must hold float32 or float64 numbers, got {name[:40]}")
    return 2.0**-23 if name == "float32" else 2.0**-52


def power_of_two(tensor: Tensor, n_dims: int) -> Tensor:
    """The largest power of two up to the largest entry, over the last ``n_dims`` dimensions, which are kept.

    Dividing by it changes no digit, and keeps squares within the range of a double. 1 for arrays of zeros.
    """
    largest = tensor.abs().amax(tuple(range(-n_dims, 0)), keepdim=True)
    return torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1.0)


def in_range(tensor: Tensor, words: str) -> Tensor:
    """A result after multiplication by its scale. Refuses results outside the range of a double."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{words} leave the range of a double: divide the arrays by a constant first")
    return tensor


def same_kind(first: ArrayOrTensor, second: ArrayOrTensor) -> None:
    """Refuses arrays of two libraries or devices."""
    kinds = [f"a tensor on {a.device}" if isinstance(a, Tensor) else "a NumPy array" for a in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"arrays of one call must be of one kind and device, got {kinds[0]} and {kinds[1]}")


def same_batch(first: Sequence[int], second: Sequence[int]) -> None:
    """Refuses leading dimensions that do not broadcast."""
    if any(
        size != other_size and 1 not in (size, other_size)
        for size, other_size in zip(first[::-1], second[::-1], strict=False)
    ):
        raise ValueError(f"leading dimensions must broadcast, got {tuple(first)} and {tuple(second)}")


def same_units(first: int, second: int) -> None:
    """Refuses different numbers of units."""
    if first != second:
        raise ValueError(f"arrays must have the same number of units, got {first} and {second}")
