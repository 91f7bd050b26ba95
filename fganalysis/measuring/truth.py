"""truth(): a gradient of any origin as what guesses are compared with, without a network.

Each named array is a layer, a view (row, column) in double precision: the first dimension is the row, all others are
the column, and an array of one dimension is one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_kind, described, listed
from fganalysis.results import schema

Generators = Literal["numpy", "torch"]
WORDS = "a mapping from names to arrays"


@dataclass(frozen=True, eq=False)
class Truth:
    """A gradient without a network: `fganalysis.truth` makes it.

    Attributes:
        layers: the names of the arrays. shapes: those of the arrays. gradients: the arrays as views (row, column), in
            double precision. standard_errors: the same of the arrays' standard errors, None where the gradient is
            exact. dtype: the coarsest data type of the arrays. generators: the kind that a draw is called with.
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    gradients: tuple[Tensor, ...]
    standard_errors: tuple[Tensor, ...] | None
    dtype: torch.dtype
    generators: Generators = "numpy"
    step: int = 0
    spaces: tuple[str, ...] = (schema.PARAMETER,)
    one_thread: bool = True  # A draw is the user's code, which need not bear threads.
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.gradients[0].device

    def with_generators(self, kind: Generators) -> Truth:
        """The same for draws that are called with another kind of generator."""
        return replace(self, generators=kind, facts={"generator": kind})

    def squared_gradients(self) -> np.ndarray:
        """‖g‖², (space, layer), layer "all" last."""
        by_layer = [float(gradient.square().sum()) for gradient in self.gradients]
        return np.array([[*by_layer, sum(by_layer)]])

    def check_exact(self) -> None:
        """Raises ValueError where the gradient has errors."""
        if self.standard_errors is not None:
            raise ValueError(
                "a verdict takes an exact truth, and this one has standard errors: use fga.measure, whose interval of "
                "the bias takes them in"
            )


def truth(
    gradient: Mapping[str, Any], *, standard_error: Mapping[str, Any] | None = None, generator: Generators = "numpy"
) -> Truth:
    """A gradient of any origin, to be given where functions of this package take a snapshot.

    Args:
        gradient: name → array (NumPy, torch, a number, or anything with ``__array__`` or DLPack) of any shape. The
            names are the layers of results.
        standard_error: of every entry of an estimated gradient, in the same names and shapes, for `fganalysis.measure`
            alone. The errors are taken as normal, and must be independent of each other and of the draws.
        generator: the kind that a draw is called with, "numpy" for a `numpy.random.Generator` or "torch" for a
            `torch.Generator` on the device of the gradient.

    Raises:
        ValueError: no mapping or an empty one, a name that is no text or is "all", what is no array of real numbers,
            an empty array, NaN or infinite entries, other names or shapes of the standard errors or negative ones,
            arrays on several devices, or another kind of generator.
    """
    check_choice("generator", generator, ("numpy", "torch"))
    named = arrays("truth", gradient)
    devices = {str(array.device) for array in named.values()}
    if len(devices) > 1:
        raise ValueError(f"the arrays of truth must be on one device, got {listed(sorted(devices))}")
    for name, array in named.items():
        if name == schema.ALL_LAYERS:
            raise ValueError(f"truth has the name {name!r}, which is that of all arrays together: rename the array")
        _check_finite(f"truth {name!r}", array)
    errors = None
    if standard_error is not None:
        given = same_names("standard_error", arrays("standard_error", standard_error), tuple(named))
        for name, array in given.items():
            if array.shape != named[name].shape:
                raise ValueError(
                    f"standard_error {name!r} must have the shape of the truth, {tuple(named[name].shape)}, got "
                    f"{tuple(array.shape)}"
                )
            _check_finite(f"standard_error {name!r}", array)
            if bool((array < 0).any()):
                raise ValueError(f"standard_error {name!r} has negative entries: give the root of each variance")
        errors = tuple(as_layer(array.to(named[name].device)) for name, array in given.items())
    return Truth(
        layers=tuple(named),
        shapes=tuple(tuple(array.shape) for array in named.values()),
        gradients=tuple(as_layer(array) for array in named.values()),
        standard_errors=errors,
        dtype=coarsest([array.dtype for array in named.values()]),
        generators=generator,
        facts={"generator": generator},
    )


def truth_of(given: object, generator: Generators | None) -> Truth:
    """A truth from a mapping or a `Truth`, with draws called with this kind of generator unless it is None."""
    if isinstance(given, Truth):
        return given if generator is None else given.with_generators(generator)
    return truth(given, generator=generator or "numpy")  # type: ignore[arg-type]


def arrays(what: str, given: object) -> dict[str, Tensor]:
    """The checked arrays of a mapping as tensors of any floating-point type. what: the mapping in words."""
    check_kind(what, given, Mapping, WORDS)
    assert isinstance(given, Mapping)
    if not given:
        raise ValueError(f"{what} must be {WORDS}, at least one, got an empty mapping")
    for name in given:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{what} must have names that are texts, got {described(name)}")
    return {name: _tensor(f"{what} {name!r}", array) for name, array in given.items()}


def same_names(what: str, given: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The arrays in the order of these names. Raises ValueError for other names."""
    if set(given) != set(names):
        raise ValueError(
            f"{what} must have the names of the truth, {listed(names, 6)}, got {listed(given, 6) or 'no names'}"
        )
    return {name: given[name] for name in names}


def as_layer(array: Tensor) -> Tensor:
    """A view (row, column) of an array of any shape, in double precision."""
    return array.double().reshape(as_matrix(tuple(array.shape)))


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of an array of this shape."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, int(np.prod(shape, dtype=np.int64)) // max(rows, 1)


def coarsest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The data type with the largest rounding errors."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _tensor(what: str, array: object) -> Tensor:
    """An array of any library as a tensor that nothing differentiates; whole numbers in double precision."""
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{what} is a masked array: fill or leave out what is masked first")
    tensor: Tensor | None = None
    try:
        if isinstance(array, Tensor):
            tensor = array.detach()
        elif isinstance(array, int | float | np.generic | np.ndarray) or hasattr(array, "__array__"):
            tensor = _of_numpy(np.asarray(array))
        elif hasattr(array, "__dlpack__"):
            tensor = torch.utils.dlpack.from_dlpack(array)
    except (TypeError, ValueError, RuntimeError, BufferError):
        tensor = None
    if tensor is None or tensor.is_complex() or tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(f"{what} must be a dense array of real numbers, got {described(array)}")
    if tensor.numel() == 0:
        raise ValueError(f"{what} must not be empty, got the shape {tuple(tensor.shape)}")
    return tensor if tensor.is_floating_point() else tensor.double()


def _of_numpy(array: np.ndarray) -> Tensor:
    # A copy in the machine's byte order: torch takes neither other orders, negative strides nor read-only memory.
    native = array.dtype if array.dtype in (np.float16, np.float32) else np.dtype(np.float64)
    if array.dtype.kind not in "fiub":
        raise TypeError
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def _check_finite(what: str, array: Tensor) -> None:
    if not bool(torch.isfinite(array).all()):
        raise ValueError(f"{what} has NaN or infinite entries")
