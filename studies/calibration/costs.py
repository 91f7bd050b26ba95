"""How often the intervals of `fganalysis.cost` hold the median, by a clock whose times have a known law.

The number of guesses is here that of rounds, each with a step of backpropagation and one of the estimator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.medians import median_interval
from studies.calibration.counting import of_all_layers

Array = NDArray[np.float64]
Clock = Callable[[tuple[int, int], np.random.Generator], tuple[Array, Array]]
QUANTITIES = ("seconds", "relative_seconds")
SPREAD = 0.1  # Standard deviation of the logarithm of a time.
RATIO = 3.0  # Of the medians.
SLOW, ENTERS, LEAVES = 1.5, 0.02, 0.05  # Times as long while the machine is slow, and the chances of a round.


def _steady(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    first, second = np.exp(SPREAD * rng.standard_normal((2, *shape)))
    return first, RATIO * second


def _interrupted(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """A tenth of the times are longer by a time of infinite mean."""
    first, second = _steady(shape, rng)
    late = (rng.random((2, *shape)) < 0.1) / rng.random((2, *shape))
    return first + late[0], second + late[1]


def _slow_for_a_while(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    """Both times of a round are longer while the machine is slow."""
    slow = np.empty(shape, dtype=bool)
    slow[:, 0] = rng.random(shape[0]) < ENTERS / (ENTERS + LEAVES)
    for place in range(1, shape[1]):
        changes = rng.random(shape[0])
        slow[:, place] = np.where(slow[:, place - 1], changes >= LEAVES, changes < ENTERS)
    factor = np.where(slow, SLOW, 1.0)
    first, second = _steady(shape, rng)
    return factor * first, factor * second


CLOCKS: dict[str, Clock] = {
    "steady clock": _steady,
    "clock with interruptions": _interrupted,
    "clock that is slow for a while": _slow_for_a_while,
}
DEPENDENT = "clock that is slow for a while"
TRUTH_SEED, TRUTH_SIZE = 1, (2**13, 256)


def counted_costs(name: str, repeats: int, rounds: int, seed: int, device: str) -> xr.Dataset:
    """How often each interval held the median, over (quantity, space, layer). device: none is taken.

    The truth is the median of two million times. It is known well enough: to 0.001 of the spread of a time.
    """
    del device
    of_law, of_steps = CLOCKS[name](TRUTH_SIZE, np.random.default_rng((TRUTH_SEED, seed)))
    first, second = CLOCKS[name]((repeats, rounds), np.random.default_rng(seed))
    truths = {"seconds": np.median(of_steps), "relative_seconds": np.median(of_steps / of_law)}
    found = {}
    for quantity, times in zip(QUANTITIES, (second, second / first), strict=True):
        value, low, high = np.apply_along_axis(median_interval, -1, times).T
        found[quantity] = Estimate(value, value, low, high)
    return of_all_layers(found, {quantity: np.asarray(truth) for quantity, truth in truths.items()})
