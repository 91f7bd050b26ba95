"""Cells of several seeds as one Dataset, and a mean over seeds with its 95 % interval, as the studies print it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import special

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Interval:
    """Mean and half-width of the 95 % interval of Student's t over seeds."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        """Rounded so that the half-width keeps one digit, two where it begins with a 1: 0.341 ± 0.012."""
        if not (math.isfinite(self.half) and self.half > 1e-9 * abs(self.mean)):
            return f"{self.mean:.3g}"
        first = math.floor(math.log10(self.half))
        decimals = -first + (self.half / 10**first < 2)
        if first < -4 or abs(self.mean) >= 1e5:
            digits = max(1, math.floor(math.log10(max(abs(self.mean), self.half))) - first + 1)
            return f"{self.mean:.{digits}g} ± {self.half:.1g}"
        return f"{self.mean:.{max(0, decimals)}f} ± {self.half:.{max(0, decimals)}f}"


def joined(parts: Mapping[int, xr.Dataset], of: DataclassInstance) -> xr.Dataset:
    """The cells over seeds, with the settings of one of them, but its seed, as attributes."""
    dataset = xr.concat(list(parts.values()), dim="seed", data_vars="all", combine_attrs="drop")
    settings = {name: value for name, value in dataclasses.asdict(of).items() if name != "seed"}
    lists = {name: list(value) for name, value in settings.items() if isinstance(value, tuple)}
    return dataset.assign_coords(seed=list(parts)).assign_attrs(settings | lists)


def over_seeds(values: ArrayLike) -> Interval:
    """The interval over the finite ones of some numbers, one a seed; NaN half-width for fewer than two."""
    numbers = np.asarray(values, dtype=float).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) < 2:
        return Interval(float(numbers.mean()) if len(numbers) else math.nan, math.nan)
    return Interval(float(numbers.mean()), float(half_widths(numbers, 0)))


def half_widths(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """t₀.₉₇₅ · standard deviation / √n along an axis."""
    n = values.shape[axis]
    return special.stdtrit(n - 1, 0.975) * values.std(axis, ddof=1) / math.sqrt(n)
