"""Means of 1, 4, 16, 64, … guesses of an estimator from one stream of guesses, each guess used once at every size.

Four means of m disjoint guesses make one of 4m, so all sizes together cost a third more than the guesses alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates

BLOCK = 16  # Guesses drawn at once: a power of four.
RATIO = 4


def means_of_guesses(
    estimator: Estimator, snapshot: Snapshot, n_guesses: int, generator: torch.Generator
) -> Iterator[tuple[int, Estimates]]:
    """Yields (m, block of means of m guesses) for m = 1, 4, 16, … as they get complete.

    Raises:
        ValueError: n_guesses that is no multiple of 16.
    """
    if n_guesses < BLOCK or n_guesses % BLOCK:
        raise ValueError(f"n_guesses must be a multiple of {BLOCK}, got {n_guesses}")
    waiting: dict[int, list[Estimates]] = defaultdict(list)
    for _ in range(n_guesses // BLOCK):
        n_averaged, block = 1, estimator(snapshot, BLOCK, generator)
        while True:
            yield n_averaged, block
            waiting[n_averaged].append(block)
            if sum(map(len, waiting[n_averaged])) % RATIO:
                break
            block = _mean_of_each(waiting.pop(n_averaged))
            n_averaged *= RATIO


def _mean_of_each(blocks: Sequence[Estimates]) -> Estimates:
    """The mean of every four guesses one after the other in the blocks."""
    if all(isinstance(block, ActivationEstimates) for block in blocks):
        return ActivationEstimates(
            _means([block.guesses for block in blocks if isinstance(block, ActivationEstimates)])
        )
    written_out = [
        tuple(c[:, None, None] * d for c, d in zip(block.coefficients.T, block.directions, strict=True))
        for block in blocks
        if isinstance(block, WeightEstimates)
    ]
    means = _means(written_out)
    return WeightEstimates(means[0].new_ones(len(means[0]), len(means)), means)


def _means(blocks: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    per_tap = [torch.cat(of_tap) if len(of_tap) > 1 else of_tap[0] for of_tap in zip(*blocks, strict=True)]
    return tuple(tap.unflatten(0, (-1, RATIO)).mean(1) for tap in per_tap)
