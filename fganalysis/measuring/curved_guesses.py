"""Slopes and curvatures of the guesses of one estimator, guess by guess, in two passes over the same guesses.

The first pass takes a product with the curvature for every guess. The second, with the mean of the guesses known and
with it the best step size, takes inner products with the others' mean and two losses for every guess. Guesses are drawn
again by the same generators, so that none has to be held. They are those of `fganalysis.sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.measuring.blocks import Seeds, fitting
from fganalysis.measuring.direct import SCALAR_BYTES, WORKING_COPIES, default_block_size
from fganalysis.measuring.parts_of_blocks import Blocks
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.measuring.sound_guesses import guesses_of
from fganalysis.results import schema
from fganalysis.statistics.intervals import Array

HALVES = 2  # Of the guesses, whose means are kept: even ones and odd ones.
NUMBERS_OF_A_GUESS = 6


@dataclass(frozen=True, eq=False)
class CurvedGuesses:
    """Numbers of every guess, (guess,), in double precision.

    Attributes:
        slope: ⟨ĝ, g⟩. curvature: ĝᵀHĝ. with_others: ĝᵀHḡ, ḡ the mean of the other guesses. with_halves: the same with
            those of each half, (half, guess).
        step: the step size of the losses, in (unit of weight)² per loss; NaN where no step decreases the loss.
        decrease: L(θ) − L(θ − step·ĝ). second_difference: (L(θ − step·ĝ) + L(θ + step·ĝ) − 2 L(θ))/step².
        block_size: guesses in a block. at_activations: whether the guesses are made there.
    """

    slope: Array
    curvature: Array
    with_others: Array
    with_halves: Array
    step: float
    decrease: Array
    second_difference: Array
    block_size: int
    at_activations: bool


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The guesses of one estimator, block by block."""

    snapshot: Snapshot
    blocks: Blocks
    seeds: Seeds
    n_guesses: int
    block_size: int

    def each(self, use: Callable[[Estimates, int], None]) -> Iterator[None]:
        """Calls ``use(guesses, number of the first)`` for all guesses; yields after every block."""
        for index in range(-(-self.n_guesses // self.block_size)):

            def keep(guesses: Estimates, place: int, index: int = index) -> None:
                start = index * self.block_size + place
                if start < self.n_guesses:
                    use(guesses.first(self.n_guesses - start), start)

            with torch.no_grad(), full_precision(self.snapshot):
                self.blocks.each(partial(self.seeds.generator, index), keep)
            yield


def curved_guesses(
    snapshot: Snapshot,
    estimator: Estimator,
    curvature: Curvature,
    n_guesses: int,
    seed: int,
    *,
    memory: int,
    progress: bool,
) -> CurvedGuesses:
    """Draws the guesses twice.

    Raises:
        ValueError: guesses that are not finite, or of wrong shapes; memory too small for one block.
    """
    seeds = Seeds.of(seed, snapshot, estimator)
    with torch.no_grad(), full_precision(snapshot):
        probe = guesses_of(estimator, snapshot, 1, seeds.generator(2**31))
    numbers = max(probe.numbers_per_guess(), 1)
    block_size = default_block_size(numbers)
    size, device = curvature.n_weights, snapshot.device
    kept = (2 * HALVES * size + NUMBERS_OF_A_GUESS * n_guesses) * SCALAR_BYTES
    # Of every guess of a block also its weights, in both precisions.
    at_weights = size * (snapshot.like.element_size() * WORKING_COPIES + SCALAR_BYTES)
    fitting(memory, kept, block_size * (numbers * snapshot.like.element_size() * WORKING_COPIES + at_weights))
    drawn = _Drawn(snapshot, Blocks(estimator, snapshot, block_size), seeds, n_guesses, block_size)
    slopes, forms = (torch.empty(n_guesses, dtype=torch.float64, device=device) for _ in range(2))
    sums = torch.zeros(HALVES, size, dtype=torch.float64, device=device)

    def first(guesses: Estimates, start: int) -> None:
        vectors = _at_weights(guesses, snapshot)
        inner = guesses.inner_products(snapshot)[0][schema.SPACES.index("weight")]
        along = curvature.forms(vectors)
        these = slice(start, start + len(vectors))
        halves = torch.arange(start, start + len(vectors), device=device) % HALVES
        added = torch.stack([vectors[halves == half].sum(0, dtype=torch.float64) for half in range(HALVES)])
        # Nothing is kept before all of it is computed: where memory runs out, the guesses are made again in parts.
        slopes[these], forms[these] = torch.nansum(inner, 0), along
        sums.add_(added)

    n_blocks = -(-n_guesses // block_size)
    bar = tqdm(total=2 * n_blocks, desc=label(estimator), disable=not progress)
    with bar:
        for _ in drawn.each(first):
            bar.update()
        finite = bool(torch.isfinite(torch.stack([slopes, forms])).all()) and bool(torch.isfinite(sums).all())
        if not finite:
            raise ValueError(
                f"a guess, or the curvature along it, is NaN, infinite or too large to square (seed {seed}): use "
                "another estimator or scale the loss"
            )
        counts = torch.tensor([(n_guesses + 1) // 2, n_guesses // 2], dtype=torch.float64, device=device)
        images = _images(curvature, sums / counts[:, None], snapshot.like)
        step = _step(float(slopes.mean()), float(forms.mean()))
        products = torch.empty(HALVES, n_guesses, dtype=torch.float64, device=device)
        ends = torch.full((2, n_guesses), torch.nan, dtype=torch.float64, device=device)

        def second(guesses: Estimates, start: int) -> None:
            vectors = _at_weights(guesses, snapshot)
            these = slice(start, start + len(vectors))
            moved = curvature.changes(vectors, step) if np.isfinite(step) else None
            products[:, these] = images @ vectors.double().T
            if moved is not None:
                ends[:, these] = moved

        for _ in drawn.each(second):
            bar.update()
    halves = np.arange(n_guesses) % HALVES
    return CurvedGuesses(
        slopes.cpu().numpy(),
        forms.cpu().numpy(),
        *without_itself(products.cpu().numpy(), forms.cpu().numpy(), halves, counts.cpu().numpy()),
        step,
        -ends[0].cpu().numpy(),
        (ends.sum(0) / step**2).cpu().numpy(),
        block_size,
        isinstance(probe, ActivationEstimates),
    )


def _step(slope: float, curvature: float) -> float:
    """The best step size of one guess; NaN where there is none."""
    return slope / curvature if slope > 0 and curvature > 0 else float("nan")


def _at_weights(guesses: Estimates, snapshot: Snapshot) -> Tensor:
    """The guesses written out at the weights, (guess, weight)."""
    return guesses.dense(snapshot)[1]


def _images(curvature: Curvature, means: Tensor, like: Tensor) -> Tensor:
    """H m of the mean of each half, (half, weight), in double precision."""
    largest = means.abs().amax(1, keepdim=True)
    lengths = torch.where(largest > 0, largest, torch.ones_like(largest))
    return curvature.products((means / lengths).to(like)).double() * lengths


def without_itself(products: Array, forms: Array, halves: NDArray[np.int64], counts: Array) -> tuple[Array, Array]:
    """ĝᵀH of the mean of the other guesses, (…, guess), and of those of each half, (half, …, guess).

    products: with the mean of each half, itself included, (half, …, guess). forms: ĝᵀHĝ, (…, guess). halves: that of
    each guess, (guess,). counts: guesses of each half, (half,).
    """
    lead = (HALVES, *(1,) * (forms.ndim - 1), 1)
    own = np.arange(HALVES).reshape(lead) == halves
    totals, others = counts.reshape(lead) * products - own * forms, counts.reshape(lead) - own
    return totals.sum(0) / others.sum(0), totals / np.maximum(others, 1)
