"""A number with its interval, and whether an advice may be made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import xarray as xr

from fganalysis.results import schema
from fganalysis.results.number_text import plain
from fganalysis.statistics import intervals

# A number is advised where it is within this factor of every value in its interval. Half or twice the best step size
# makes three quarters of its decrease, or none: beyond this an advice would be worth nothing.
WITHIN = 2.0


@dataclass(frozen=True)
class Bounded:
    """A value, the bounds of its 95 % interval, and whether that is wide or may be too short."""

    value: float
    low: float
    high: float
    wide: bool = False
    short: bool = False

    @staticmethod
    def of(cell: xr.Dataset, name: str) -> Bounded:
        """A variable of a Dataset without dimensions; flags that the Dataset does not have are False."""
        value, low, high = (float(cell[name + suffix]) for suffix in ("", schema.LOW, schema.HIGH))
        wide, short = (name + suffix in cell and float(cell[name + suffix]) == 1 for suffix in FLAGS)
        return Bounded(value, low, high, wide, short)

    def mapped(self, function: Callable[[float], float]) -> Bounded:
        """The value of a monotone function, and its interval."""
        ends = [function(self.low), function(self.high)]
        missing = any(map(math.isnan, ends))
        low, high = (math.nan, math.nan) if missing else (min(ends), max(ends))
        return replace(self, value=function(self.value), low=low, high=high)

    def scaled(self, factor: float) -> Bounded:
        """Times a number."""
        return self.mapped(lambda value: value * factor)

    def why_not(self) -> str:
        """Why no advice may be made of this number; empty where one may."""
        if any(map(math.isnan, (self.low, self.high))):
            return f"it has no interval, which takes at least {intervals.LEAST} guesses and finite numbers"
        if self.low <= 0:
            return f"its interval, {self.bounds()}, holds zero"
        if not math.isfinite(self.high):
            return f"its interval has no upper bound, it begins at {shown(self.low)}"
        if not (self.high <= WITHIN * self.value and self.value <= WITHIN * self.low):
            return f"its interval, {self.bounds()}, is wide: not within a factor of {WITHIN:g} of {shown(self.value)}"
        return ""

    def bounds(self) -> str:
        """The interval in words."""
        return f"{shown(self.low)} to {shown(self.high)}"

    def text(self) -> str:
        """Value and interval in words."""
        remark = ", perhaps too short" if self.short else ", wide" if self.wide else ""
        return f"{shown(self.value)} ({self.bounds()}{remark})"


FLAGS = (schema.WIDE, schema.SHORT)
MISSING = Bounded(math.nan, math.nan, math.nan)


def shown(value: float) -> str:
    """Three digits, without an exponent for numbers that people count."""
    return plain(value)


def guesses(number: Bounded) -> Bounded:
    """Rounded up to whole guesses, at least one."""
    return number.mapped(lambda value: max(1.0, math.ceil(value - 1e-9)) if math.isfinite(value) else value)
