"""Guesses drawn from simple laws, and the scalars that they leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fganalysis.statistics import quantities
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.rounding import DOUBLE


@dataclass(frozen=True)
class Sample:
    """Guesses of many repeats, (repeat, guess, number), dealt to groups."""

    guesses: np.ndarray
    gradient: np.ndarray
    groups: int

    def arrays(self, precision: float = DOUBLE) -> tuple:
        """The arguments of `quantities.quantities`, from guesses rounded to this precision."""
        kind = np.float32 if precision > DOUBLE else np.float64
        guesses, gradient = self.guesses.astype(kind), self.gradient.astype(kind)
        n = guesses.shape[1]
        of_guess = np.arange(n) // (n // self.groups)
        # The sampler's: sums in the precision of the guesses, Gram matrices in double.
        means = guesses.reshape(len(guesses), self.groups, -1, guesses.shape[-1]).mean(2).astype(float) - gradient
        parts = (guesses @ gradient, (guesses**2).sum(-1), means @ means.mT)
        squared = np.full(len(guesses), (gradient.astype(float) ** 2).sum())
        return *(part.astype(float) for part in parts), of_guess, squared, precision

    def quantities(self, precision: float = DOUBLE) -> dict[str, Estimate]:
        return quantities.quantities(*self.arrays(precision))


def simulated(rng: np.random.Generator, n_guesses: int, groups: int, scale: float = 1.0, repeats: int = 1) -> tuple:
    """Guesses ĝ = 0.8 g + noise in 12 dimensions, and the truth of every quantity."""
    dimension = 12
    gradient = np.zeros(dimension)
    gradient[0] = 2.0 * scale
    guesses = 0.8 * gradient + rng.normal(size=(repeats, n_guesses, dimension)) * scale
    second = 0.64 * 4 + dimension
    truth = {
        "squared_bias": 0.04 * 4 * scale**2,
        "bias": 0.4 * scale,
        "relative_bias": 0.2,
        "shrinkage": 0.8,
        "directional_bias": 0.0,
        "variance": dimension * scale**2,
        "mse": (0.16 + dimension) * scale**2,
        "efficiency": (0.8 * 4) ** 2 / (4 * second),
        "best_scale": 0.8 * 4 / second,
    }
    return Sample(guesses, gradient, groups), truth


GUESSES = 256

ALONG = np.eye(20)[0]  # The gradient, of unit length, of what is drawn in 20 dimensions.


def along_random_directions(rng: np.random.Generator, repeats: int) -> np.ndarray:
    directions = rng.normal(size=(repeats, GUESSES, len(ALONG)))
    return directions[..., :1] * directions
