"""For test suites: exact expectations by enumeration, and what to assert of one's own estimator.

`assert_unbiased` and `assert_moments_match` sample; `exact_moments` enumerates every value that the noise can take,
with no sampling at all; `strategies` (which needs hypothesis) draws networks, batches, noise laws and estimators.

Two laws of finite support stand in for the usual ones. `Signs` is the Rademacher law itself. `ThreePoints` takes
−√3, 0, √3 with probabilities 1/6, 4/6, 1/6 and has the moments of a standard normal up to the fifth, so that the mean
and the covariance of every guess that is a quadratic form in ε (slope times direction) are the Gaussian ones.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fganalysis.checking import assert_unbiased, check_unbiased
from fganalysis.estimators import Estimator, resolve
from fganalysis.matching import assert_moments_match
from fganalysis.snapshot import Snapshot

__all__ = [
    "Enumeration",
    "ExactMoments",
    "assert_moments_match",
    "assert_unbiased",
    "check_unbiased",
    "exact_moments",
    "signs",
    "three_points",
]


def __getattr__(name: str) -> Any:
    """`strategies` is imported when it is asked for: hypothesis is no dependency of measuring."""
    if name == "strategies":
        return importlib.import_module("fganalysis.strategies")
    raise AttributeError(f"module 'fganalysis.testing' has no attribute {name!r}")


@dataclass
class Enumeration:
    """A noise law of finite support that hands out, in turn, the coordinates of every point of its product space.

    ``values`` and ``probabilities`` are those of one entry; ``first`` and ``count`` say which points of the product
    space the next draws return. ``drawn`` counts the coordinates handed out so far.
    """

    values: tuple[float, ...]
    probabilities: tuple[float, ...]
    fourth_moment: float
    first: int = 0
    drawn: int = field(default=0, repr=False)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        n_points, n_coordinates = shape[0], math.prod(shape[1:])
        digits = self.digits(torch.arange(self.first, self.first + n_points), self.drawn, n_coordinates)
        self.drawn += n_coordinates
        return torch.tensor(self.values, dtype=like.dtype)[digits].view(shape).to(like.device)

    def digits(self, points: Tensor, start: int, count: int) -> Tensor:
        """Digits ``start … start + count`` of each point's number in base len(values), (point, count)."""
        base = len(self.values)
        # No point's number reaches 2^62, so that a higher place holds a zero; its power would overflow.
        powers = torch.tensor([min(base**place, 2**62) for place in range(start, start + count)], dtype=torch.int64)
        return (points[:, None] // powers) % base

    def weights(self, n_points: int, n_coordinates: int) -> Tensor:
        """Probabilities of the points first … first + n_points, (point,)."""
        digits = self.digits(torch.arange(self.first, self.first + n_points), 0, n_coordinates)
        return torch.tensor(self.probabilities, dtype=torch.float64)[digits].prod(1)

    def fourth(self, n: int) -> float:
        return self.fourth_moment

    def pair(self, n: int) -> float:
        return 1.0


def signs() -> Enumeration:
    """±1 with probability one half each: the Rademacher law."""
    return Enumeration((-1.0, 1.0), (0.5, 0.5), fourth_moment=1.0)


def three_points() -> Enumeration:
    """−√3, 0, √3 with probabilities 1/6, 4/6, 1/6: the moments of N(0, 1) up to the fifth."""
    return Enumeration((-math.sqrt(3.0), 0.0, math.sqrt(3.0)), (1 / 6, 4 / 6, 1 / 6), fourth_moment=3.0)


@dataclass(frozen=True)
class ExactMoments:
    """Mean and covariance of one guess, flattened tap after tap in row-major order; in a space without guesses, None.

    Attributes:
        activation_mean: (number,), activation_covariance: (number, number), over (example, unit) of every tap.
        weight_mean, weight_covariance: the same over (unit, input) of every tap.
        n_points: how many points were enumerated.
    """

    activation_mean: Tensor | None
    activation_covariance: Tensor | None
    weight_mean: Tensor
    weight_covariance: Tensor
    n_points: int


def exact_moments(
    estimator: str | Estimator,
    snapshot: Snapshot,
    law: Callable[[], Enumeration] = three_points,
    max_points: int = 2**21,
) -> ExactMoments:
    """Mean and covariance of an estimator whose noise can be injected (it has a ``noise`` field), by enumeration.

    Args:
        estimator: a key or an instance; its ``noise`` is replaced by ``law()``.
        snapshot: a network with few noise dimensions; double precision makes the result exact to rounding.
        law: `signs` or `three_points`.
        max_points: refuse larger enumerations.

    Raises:
        ValueError: an estimator without a ``noise`` field, or an enumeration above ``max_points`` (with its size).
    """
    chosen: Any = resolve(estimator)
    if not hasattr(chosen, "noise"):
        return _without_noise(chosen, snapshot)
    noise = law()
    injected = replace(chosen, noise=noise)
    generator = torch.Generator(snapshot.outputs.device).manual_seed(0)
    injected(snapshot, 1, generator)
    n_coordinates, base = noise.drawn, len(noise.values)
    n_points = base**n_coordinates
    if n_points > max_points:
        raise ValueError(f"the enumeration has {base}^{n_coordinates} points, above max_points={max_points}")
    sums: list[_WeightedSums] = []
    for start in range(0, n_points, 2**12):
        count = min(2**12, n_points - start)
        noise.first, noise.drawn = start, 0
        with torch.no_grad():
            spaces = injected(snapshot, count, generator).dense(snapshot)
        weights = noise.weights(count, n_coordinates).to(snapshot.outputs.device)
        if not sums:
            sums = [_WeightedSums() for _ in spaces]
        for space, guesses in zip(sums, spaces, strict=True):
            space.add(weights, guesses)
    (activation_mean, activation_covariance), (weight_mean, weight_covariance) = (s.moments() for s in sums)
    assert weight_mean is not None and weight_covariance is not None
    return ExactMoments(activation_mean, activation_covariance, weight_mean, weight_covariance, n_points)


class _WeightedSums:
    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def add(self, weights: Tensor, guesses: Tensor | None) -> None:
        if guesses is None:
            return
        guesses = guesses.double()
        first, second = weights @ guesses, (guesses * weights[:, None]).T @ guesses
        self.first = first if self.first is None else self.first + first
        self.second = second if self.second is None else self.second + second

    def moments(self) -> tuple[Tensor | None, Tensor | None]:
        if self.first is None or self.second is None:
            return None, None
        return self.first, self.second - torch.outer(self.first, self.first)


def _without_noise(estimator: Estimator, snapshot: Snapshot) -> ExactMoments:
    """Moments of a deterministic estimator; two calls with different generators must agree."""
    calls: list[Sequence[Tensor | None]] = []
    for seed in (0, 1):
        generator = torch.Generator(snapshot.outputs.device).manual_seed(seed)
        calls.append(estimator(snapshot, 1, generator).dense(snapshot))
    for one, other in zip(*calls, strict=True):
        if one is not None and other is not None and not torch.equal(one, other):
            raise ValueError(f"{type(estimator).__name__} draws noise but has no `noise` field to inject a law into")
    sums = [_WeightedSums() for _ in calls[0]]
    for space, guess in zip(sums, calls[0], strict=True):
        space.add(torch.ones(1, dtype=torch.float64), guess)
    (activation_mean, activation_covariance), (weight_mean, weight_covariance) = (s.moments() for s in sums)
    assert weight_mean is not None and weight_covariance is not None
    return ExactMoments(activation_mean, activation_covariance, weight_mean, weight_covariance, 1)
