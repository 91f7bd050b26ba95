"""exact_moments(): exact expectations of an estimator by enumerating every value that its noise can take.

Two laws of finite support stand in for the usual ones. `Signs` is the Rademacher law itself. `ThreePoints` takes
−√3, 0, √3 with probabilities 1/6, 4/6, 1/6 and has the moments of a standard normal up to the fifth, so that the mean
and the covariance of every guess that is a quadratic form in ε (slope times direction) are the Gaussian ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fganalysis.arguments import check_callable, check_kind, check_number, check_whole, described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.estimators.noise import Noise


@dataclass
class Enumeration:
    """A noise law with finitely many values, whose draws go through every point of the product space in turn.

    Attributes:
        values, probabilities: of one entry of the noise.
        fourth_moment: E ε⁴ of one entry.
        first: index of the point of the product space that the first guess of the next draw gets.
        drawn: how many coordinates of these points earlier draws have returned.
        n_points: if given, the number of guesses that every draw must have.
    """

    values: tuple[float, ...]
    probabilities: tuple[float, ...]
    fourth_moment: float
    first: int = 0
    drawn: int = field(default=0, repr=False)
    n_points: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, numbers in (("values", self.values), ("probabilities", self.probabilities)):
            if not isinstance(numbers, tuple) or len(numbers) < 2:
                raise ValueError(f"{name} must be a tuple of at least two numbers, got {described(numbers)}")
            for number in numbers:
                check_number(f"a number in {name}", number)
        if len(self.values) != len(self.probabilities):
            raise ValueError(f"{len(self.values)} values need as many probabilities, got {len(self.probabilities)}")
        if min(self.probabilities) < 0 or not math.isclose(sum(self.probabilities), 1):
            raise ValueError(f"probabilities must be at least 0 and add up to 1, got {described(self.probabilities)}")
        check_number("fourth_moment", self.fourth_moment, least=0)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        n_points, n_coordinates = shape[0], math.prod(shape[1:])
        if self.n_points not in (None, n_points):
            raise ValueError(
                f"noise of shape {tuple(shape)} was drawn for {self.n_points} guesses: they must come first"
            )
        digits = self.digits(torch.arange(self.first, self.first + n_points), self.drawn, n_coordinates)
        self.drawn += n_coordinates
        return torch.tensor(self.values, dtype=like.dtype)[digits].view(shape).to(like.device)

    def digits(self, points: Tensor, start: int, count: int) -> Tensor:
        """Digits ``start … start + count`` of the index of each point in base len(values), (point, count)."""
        base = len(self.values)
        # Indices are below 2^62, so all higher digits are zero. Powers above 2^62 would overflow.
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
    """Mean and covariance of one guess, flattened tap after tap in row-major order; None in a space without guesses.

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
        ValueError: an enumeration above ``max_points`` (with its size); random numbers from elsewhere than a ``noise``
            field; noise whose first dimension is not the guess; a ``noise`` field that is no law or cannot be replaced;
            another ``law``; a class for an estimator; no snapshot.
    """
    chosen: Any = resolve(estimator)
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_callable("law", law, "a function that makes an Enumeration, such as signs and three_points", 0)
    check_whole("max_points", max_points)
    if not hasattr(chosen, "noise"):
        return _without_noise(chosen, snapshot)
    name = label(chosen)
    injectable = isinstance(chosen.noise, Noise) and is_dataclass(chosen)
    if not injectable:
        raise ValueError(f"{name} must be a dataclass with a noise law in its `noise` field, to inject another")
    noise = law()
    check_kind("law()", noise, Enumeration, "an Enumeration, such as signs and three_points make")
    injected = replace(chosen, noise=noise)
    noise.n_points = 1
    _call(injected, snapshot, 1)
    n_coordinates, base = noise.drawn, len(noise.values)
    if n_coordinates == 0:
        return _without_noise(injected, snapshot)
    n_points = base**n_coordinates
    if n_points > max_points:
        raise ValueError(f"{name}: the enumeration has {base}^{n_coordinates} points, above max_points={max_points}")
    sums: list[_WeightedSums] = []
    for start in range(0, n_points, 2**12):
        count = min(2**12, n_points - start)
        noise.first, noise.drawn, noise.n_points = start, 0, count
        spaces = _call(injected, snapshot, count)
        if noise.drawn != n_coordinates:
            raise ValueError(f"{name} drew {n_coordinates} numbers a guess in one call and {noise.drawn} in another")
        weights = noise.weights(count, n_coordinates).to(snapshot.device)
        if not sums:
            sums = [_WeightedSums() for _ in spaces]
        for space, guesses in zip(sums, spaces, strict=True):
            space.add(weights, guesses)
    return _moments(sums, n_points)


def _call(estimator: Estimator, snapshot: Snapshot, n_guesses: int, seed: int = 0) -> Sequence[Tensor | None]:
    """Dense guesses. Raises ValueError where the estimator draws from its generator or from torch's global one."""
    generator = torch.Generator(snapshot.device).manual_seed(seed)
    before = generator.get_state(), torch.get_rng_state()
    with torch.no_grad():
        spaces = estimator(snapshot, n_guesses, generator).dense(snapshot)
    if not all(map(torch.equal, before, (generator.get_state(), torch.get_rng_state()))):
        raise ValueError(_draws_in_secret(estimator))
    return spaces


def _draws_in_secret(estimator: Estimator) -> str:
    if hasattr(estimator, "noise"):
        return f"{label(estimator)} draws from the generator itself, which no law from its `noise` field can enumerate"
    return f"{label(estimator)} draws noise but has no `noise` field to inject a law into"


def _moments(sums: list[_WeightedSums], n_points: int) -> ExactMoments:
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
    """Moments of a deterministic estimator. Raises ValueError where two calls with different seeds differ."""
    calls = [_call(estimator, snapshot, 1, seed) for seed in (0, 1)]
    for first, second in zip(*calls, strict=True):
        if first is not None and second is not None and not torch.equal(first, second):
            raise ValueError(_draws_in_secret(estimator))
    sums = [_WeightedSums() for _ in calls[0]]
    for space, guess in zip(sums, calls[0], strict=True):
        space.add(torch.ones(1, dtype=torch.float64, device=snapshot.device), guess)
    return _moments(sums, 1)
