"""The monitor's clock: how long training and measuring take, and what the next measurement may cost.

A measurement of n guesses takes about F + u n seconds, F and u being those of the last one. It is made where all that
was spent on measuring, this one included, stays within a share of the training time so far; with fewer guesses where
it does so with them, and not at all where it does not even with 32. What a measurement takes longer than was
thought counts as spent and delays the next. The first has to find out what one takes, so it is made whatever it takes.
"""

from __future__ import annotations

from collections.abc import Callable

from fganalysis.measuring.direct import MOST_GUESSES_PER_BLOCK
from fganalysis.statistics.intervals import LEAST

Clock = Callable[[], float]


class Budget:
    """Seconds of training and of measuring. at_most: the share, None for any. clock: gives the time in seconds."""

    def __init__(self, at_most: float | None, clock: Clock):
        self._at_most, self._clock = at_most, clock
        self._left: float | None = None  # When the training went on.
        self.training = self.spent = 0.0
        self._fixed: float | None = None
        self._each = 0.0

    @property
    def share(self) -> float:
        """Seconds spent on measuring over those of training, NaN before the second step."""
        return self.spent / self.training if self.training > 0 else float("nan")

    def arrive(self) -> None:
        """A training step has come to the monitor."""
        if self._left is not None:
            self.training += self._clock() - self._left

    def leave(self) -> None:
        """The training goes on."""
        self._left = self._clock()

    def guesses(self, wanted: int) -> int:
        """How many guesses a measurement may have, of those that are wanted; 0 for no measurement."""
        if self._at_most is None:
            return wanted
        fewest = min(LEAST, wanted)  # Fewer have no interval.
        if self._fixed is None:
            return fewest
        left = self._at_most * self.training - self.spent - self._fixed
        if left < self._each * fewest:
            return 0
        if left >= self._each * wanted:
            return wanted
        # A block that is begun is made whole.
        return int(left / self._each) // MOST_GUESSES_PER_BLOCK * MOST_GUESSES_PER_BLOCK

    def now(self) -> float:
        return self._clock()

    def paid(self, seconds: float, setting_up: float, of_guesses: float, n_guesses: int) -> None:
        """A measurement took so long in all, of that so long once for all measurements and so long for its guesses."""
        self.spent += seconds
        self._fixed = max(seconds - setting_up - of_guesses, 0.0)
        self._each = of_guesses / n_guesses

    def state(self) -> dict[str, float | None]:
        return {"training": self.training, "spent": self.spent, "fixed": self._fixed, "each": self._each}

    def restore(self, state: dict[str, float | None]) -> None:
        fixed = None if state["fixed"] is None else float(state["fixed"])
        training, spent, each = (float(state[name] or 0.0) for name in ("training", "spent", "each"))
        self.training, self.spent, self._fixed, self._each, self._left = training, spent, fixed, each, None
