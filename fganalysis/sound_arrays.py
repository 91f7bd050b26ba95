"""Arrays of either library that are fit to compute with: NumPy arrays and torch tensors, checked and made double.

Raises ValueError for other kinds and data types, mixed kinds, empty arrays, NaN or infinite entries, and shapes that do
not fit each other.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", NDArray[Any], Tensor)


def double(array: Array, name: str, least_dims: int) -> Tensor:
    """The array as a double tensor on its device, once it is known to be sound."""
    if not isinstance(array, np.ndarray | Tensor):
        raise ValueError(f"{name} must be a NumPy array or a torch tensor, got {type(array).__name__}")
    precision(array)
    if isinstance(array, Tensor) and array.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got the layout {array.layout}")
    if array.ndim < least_dims or 0 in array.shape:
        raise ValueError(f"{name} must have at least {least_dims} dimensions, none empty, got {tuple(array.shape)}")
    if isinstance(array, Tensor):
        tensor = array.detach().double()
    else:
        tensor = torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} has NaN or infinite entries")
    return tensor


def like(tensor: Tensor, array: Array) -> Array:
    """A result as the kind of array that came in."""
    return tensor if isinstance(array, Tensor) else tensor.numpy()


def precision(array: Array) -> float:
    """The machine precision that the array's numbers came with."""
    name = str(array.dtype).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise ValueError(f"arrays must hold float32 or float64 numbers, got {name}")
    return 2.0**-23 if name == "float32" else 2.0**-52


def same_kind(first: Array, second: Array) -> None:
    """Refuses arrays of two libraries or devices."""
    kinds = [f"a tensor on {a.device}" if isinstance(a, Tensor) else "a NumPy array" for a in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"arrays of one call must be of one kind and device, got {kinds[0]} and {kinds[1]}")


def same_batch(first: torch.Size, second: torch.Size) -> None:
    """Refuses leading dimensions that do not broadcast."""
    if any(one != other and 1 not in (one, other) for one, other in zip(first[::-1], second[::-1], strict=False)):
        raise ValueError(f"leading dimensions must broadcast, got {tuple(first)} and {tuple(second)}")


def same_units(first: int, second: int) -> None:
    """Refuses different numbers of units."""
    if first != second:
        raise ValueError(f"arrays must have the same number of units, got {first} and {second}")
