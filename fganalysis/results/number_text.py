"""A number in words: as many digits as its interval gives it, the bounds of the interval, and what is said of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

DIGITS = 3  # Of a number without an interval.
DIGITS_OF_WIDTH = 2  # Of the width of an interval: the last digits of a number that the interval does not hide.
MOST_DIGITS = 7


@dataclass(frozen=True)
class Interval:
    """The bounds of a 95 % interval, whether it is wide, so that it may cover far more, and whether it may be short."""

    low: float
    high: float
    wide: bool = False
    short: bool = False

    @property
    def known(self) -> bool:
        """Whether there are bounds."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def exact(self) -> bool:
        """Whether the bounds are one number."""
        return self.low == self.high

    def text(self, value: float) -> str:
        """The bounds in words: "0.11 to 0.13, perhaps too short"; "exact" and "no interval" where that is so."""
        if not self.known:
            return "no interval"
        if self.exact and self.low == value:
            return "exact"
        remark = ", perhaps too short" if self.short else ", wide" if self.wide else ""
        return f"{self.digits(self.low)} to {self.digits(self.high)}{remark}"

    def digits(self, number: float) -> str:
        """A number with the digits that this interval gives it."""
        width = self.high - self.low
        if not (math.isfinite(number) and math.isfinite(width) and width > 0 and number != 0):
            return plain(number)
        wanted = math.floor(math.log10(abs(number))) - math.floor(math.log10(width)) + DIGITS_OF_WIDTH
        return plain(number, min(max(wanted, 1), MOST_DIGITS))


def plain(number: float, digits: int = DIGITS) -> str:
    """A number of so many digits, without an exponent where people count; "–" where it is not known."""
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    text = f"{number + 0.0:.{digits}g}"  # Without the sign of a zero.
    text = f"{number:.0f}" if "e+" in text and abs(number) < 1e6 else text
    return text.replace("-", "−", int(number < 0))
