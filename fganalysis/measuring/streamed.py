"""Guesses along directions of the weights that are too large to be held: drawn part by part, and twice.

A direction is scaled by its slope, which takes all of the direction. So each part of the weights is drawn once for
slopes and lengths, and once more for the sums over groups of guesses, when the factors are known. What is held is a
part for each group, whatever the network's size. Results depend on neither memory, number of workers nor order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.capturing.precision import LONGEST, SHORTEST
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import Gaussian, Rademacher, Sphere
from fganalysis.estimators.protocol import Estimator
from fganalysis.estimators.tangents_of_weights import Tangents, tangents_of
from fganalysis.measuring.along_directions import Bar, Way
from fganalysis.measuring.blocks import MOST_GROUPS, Seeds, calling_thread_single, fitting, in_order
from fganalysis.measuring.group_ranges import even_groups, fitting_groups
from fganalysis.measuring.sampled_dataset import RawNumbers
from fganalysis.results import schema
from fganalysis.statistics.intervals import power_of_two

Array = NDArray[np.float64]

# Networks of more weights are streamed. Their directions are drawn twice, and smaller ones fit a block.
STREAMED_FROM = 2**24
# Tuned for speed by the time of a guess at 10⁸ weights: to tune it again, change it and time `fga.sample`. Another size
# gives other random numbers, because each part has its own generator.
NUMBERS_PER_PART = 2**17
MOST_DIRECTIONS = 64  # Of one guess; more are held by the estimator itself.


@dataclass(frozen=True)
class Part:
    """A part of a layer's weights. number: of the part in the network. gradient: the exact one, flat."""

    number: int
    layer: int
    gradient: Tensor


@dataclass(frozen=True)
class Stream:
    """What is drawn: the directions of every guess, part by part.

    law: of a guess. sizes: weights of each layer. parts: of all layers. seeds: of guesses.
    """

    law: Tangents
    sizes: Array
    parts: Sequence[Part]
    seeds: Seeds

    @property
    def n_directions(self) -> int:
        """Directions of a guess."""
        return self.law.k * self.law.n_averaged

    def part_seeds(self, guess: int) -> list[int]:
        """A seed for the generator of every part, the same at each call."""
        return [int(seed) for seed in self.seeds.numbers(guess).integers(2**63, size=len(self.parts))]

    def draw(self, part: Part, seed: int, generator: torch.Generator) -> Tensor:
        """The directions of one guess at a part, (direction, weight); those on a sphere not yet rescaled to it."""
        law = Gaussian() if isinstance(self.law.noise, Sphere) else self.law.noise
        shape = (self.n_directions, part.gradient.numel())
        return law.draw(shape, generator.manual_seed(seed), part.gradient)

    def numbers(self, guess: int) -> tuple[Array, Array, Array]:
        """⟨ĝ, g⟩ and ‖ĝ‖², (layer,), and the factors of the directions as drawn, (layer, direction)."""
        n_layers, n = len(self.sizes), self.n_directions
        products = torch.zeros(n_layers, n, dtype=torch.float64)
        grams = torch.zeros(n_layers, n, n, dtype=torch.float64)
        generator = torch.Generator(self.parts[0].gradient.device)
        for part, seed in zip(self.parts, self.part_seeds(guess), strict=True):
            directions = self.draw(part, seed, generator)
            products[part.layer] += (directions @ part.gradient).double().cpu()
            grams[part.layer] += (directions @ directions.T).double().cpu()
        on_sphere = isinstance(self.law.noise, Sphere)
        scales = np.ones((n_layers, n))
        if on_sphere:
            scales = np.sqrt(self.sizes[:, None] / np.diagonal(grams.numpy(), axis1=1, axis2=2))
        along = products.numpy() * scales
        gram = grams.numpy() * scales[:, :, None] * scales[:, None, :]
        factors = self._factors(along, gram)
        inner = (factors * along).sum(1)
        squares = np.einsum("li,lij,lj->l", factors, gram, factors)
        return inner, squares, factors * scales

    def _factors(self, along: Array, gram: Array) -> Array:
        """The factor of each direction in the guess, (layer, direction). along: their slopes in each layer."""
        joint = self.law.layers == "joint"
        slopes = np.broadcast_to(along.sum(0), along.shape) if joint else along
        if self.law.combine == "mean":
            return np.asarray(slopes / self.n_directions)
        # A projection on k directions each, then the mean of the projections.
        factors, k = np.empty_like(along), self.law.k
        together = np.broadcast_to(gram.sum(0), gram.shape) if joint else gram
        for start in range(0, self.n_directions, k):
            these = slice(start, start + k)
            factors[:, these] = np.linalg.solve(together[:, these, these], slopes[:, these, None])[..., 0]
        return factors / self.law.n_averaged

    def gram_of_errors(
        self, part: Part, factors: Array, seeds: Array, groups: NDArray[np.int64], sizes: Array
    ) -> Array:
        """Inner products between the errors of the groups' means at one part, (group, group)."""
        sums = part.gradient.new_zeros(len(sizes), part.gradient.numel())
        generator = torch.Generator(part.gradient.device)
        scaled = torch.from_numpy(factors[:, part.layer]).to(part.gradient)
        for guess, group in enumerate(groups.tolist()):
            directions = self.draw(part, int(seeds[guess, part.number]), generator)
            sums[group].addmv_(directions.T, scaled[guess])
        counts = torch.from_numpy(sizes).to(sums.device)
        errors = sums.double().div_(counts[:, None]).sub_(part.gradient)
        return np.asarray((errors @ errors.T).cpu().numpy())


def is_streamed(estimator: Estimator, snapshot: Snapshot) -> bool:
    """Whether the guesses of an estimator are drawn part by part: on networks of many weights, where they can be."""
    if sum(layer.weight.numel() for layer in snapshot.weights) <= STREAMED_FROM or snapshot.autodiff == "forward":
        return False
    law = tangents_of(estimator)
    if law is None or law.slope != "derivative" or law.k * law.n_averaged > MOST_DIRECTIONS:
        return False
    return type(law.noise) in (Gaussian, Rademacher, Sphere)


def way_streamed(snapshot: Snapshot, estimator: Estimator) -> Way:
    """How guesses of an estimator are drawn part by part. It must be one that `is_streamed` takes."""
    law = tangents_of(estimator)
    assert law is not None
    precision = float(torch.finfo(snapshot.dtype).eps)
    return Way("streamed", law, partial(raw_numbers, law, snapshot), 1, precision, {})


def raw_numbers(
    law: Tangents,
    snapshot: Snapshot,
    squared_gradient: np.ndarray,
    n_guesses: int,
    seeds: Seeds,
    *,
    memory: int = 2**30,
    workers: int | None = None,
    bar: Bar = lambda parts, number: parts,
) -> RawNumbers:
    """The numbers of streamed guesses.

    Args:
        law: of a guess. squared_gradient: exact ‖G‖², (space, layer), "all" last. n_guesses, memory, workers: as in
            `fganalysis.sample`. seeds: of the guesses. bar: shows progress.

    Raises:
        ValueError: memory too small for the numbers of the guesses and a part; guesses that are not finite.
    """
    weight = schema.SPACES.index("weight")
    norm = np.sqrt(squared_gradient[weight, -1])
    unit = 1.0 if SHORTEST < norm < LONGEST else float(power_of_two(norm))
    parts = _parts(snapshot, unit)
    sizes = np.array([layer.weight.numel() for layer in snapshot.weights], dtype=float)
    stream = Stream(law, sizes, parts, seeds)
    shape = (len(schema.SPACES), len(sizes) + 1)
    kept = 8 * n_guesses * (2 * int(np.prod(shape)) + len(parts) + len(sizes) * stream.n_directions)
    size = snapshot.like.element_size()
    bytes_of_group = NUMBERS_PER_PART * (size + 8)
    bytes_of_directions = NUMBERS_PER_PART * 2 * stream.n_directions * size
    n_groups = fitting_groups(n_guesses, MOST_GROUPS, memory - kept - bytes_of_directions, bytes_of_group)
    bytes_of_part = n_groups * bytes_of_group + bytes_of_directions
    in_flight = fitting(memory, kept, bytes_of_part)
    workers = 1 if snapshot.device.type != "cpu" else min(workers or os.cpu_count() or 1, in_flight)
    inner, squares = np.full((*shape, n_guesses), np.nan), np.full((*shape, n_guesses), np.nan)
    factors = np.empty((n_guesses, len(sizes), stream.n_directions))

    def measure(guess: int) -> None:
        with torch.no_grad():
            products, lengths, factors[guess] = stream.numbers(guess)
        if not np.isfinite(lengths).all():
            raise ValueError(
                f"the estimator made a guess that is NaN, infinite or too long to square (seed {seeds.seed})"
            )
        inner[weight, :-1, guess], inner[weight, -1, guess] = products * unit**2, products.sum() * unit**2
        squares[weight, :-1, guess], squares[weight, -1, guess] = lengths * unit**2, lengths.sum() * unit**2

    group_of_guess = np.arange(n_guesses) % n_groups
    counts = np.bincount(group_of_guess).astype(float)
    part_seeds = np.array([stream.part_seeds(guess) for guess in range(n_guesses)])

    def errors(number: int) -> Array:
        with torch.no_grad():
            return stream.gram_of_errors(parts[number], factors, part_seeds, group_of_guess, counts)

    gram = np.full((*shape, n_groups, n_groups), np.nan)
    gram[weight] = 0.0

    def steps() -> Any:
        yield from in_order(measure, n_guesses, workers)
        for part, of_part in zip(parts, in_order(errors, len(parts), workers), strict=True):
            gram[weight, part.layer] += of_part * unit**2
            yield

    # How many threads share a sum changes its last digit.
    with calling_thread_single():
        for _ in bar(steps(), n_guesses + len(parts)):
            pass
    gram[weight, -1] = gram[weight, :-1].sum(0)
    return RawNumbers(inner, squares, gram, group_of_guess, squared_gradient, even_groups(n_guesses))


def _parts(snapshot: Snapshot, unit: float) -> list[Part]:
    parts: list[Part] = []
    for layer, gradient in enumerate(snapshot.weight_gradients):
        for piece in gradient.flatten().split(NUMBERS_PER_PART):
            parts.append(Part(len(parts), layer, piece if unit == 1 else piece / unit))
    return parts
