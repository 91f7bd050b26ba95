"""Looks of blocks of guesses, each block from its own generator, and the sums of their errors in every space."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.assertions.guess_errors import GuessErrors, bytes_needed
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.reference import Reference
from fganalysis.estimators import Estimator
from fganalysis.estimators.guesses import Compared
from fganalysis.measuring.blocks import Seeds, in_order
from fganalysis.measuring.sound_guesses import guesses_of
from fganalysis.statistics.rounding import ROUNDING

# The plan of the looks, tuned by `python -m studies.calibration`. To tune it again, change it, run the study with
# `--out` a new folder, and read two tables of its page: false alarms must stay below alpha, and the guesses until a
# bias is detected should be few. Smaller blocks decide earlier, but their sums are less symmetric.
BLOCKS = 64  # Blocks in a look.
FIRST_BLOCK = 16  # Guesses in a block of the first look.
GROWTH = 1.5  # Size of a block relative to the blocks of the look before.
LEAST_GUESSES = 2 * BLOCKS * FIRST_BLOCK

# Tuned for speed by `python -m studies.throughput`: a change alters the time of a guess, and no result.
NUMBERS_PER_CALL = 2**20  # Numbers that a call of the estimator may return: what a cache holds.
NUMBERS_WORTH_THREADS = 2**12  # Guesses of fewer numbers are drawn faster without threads.
WORKING_COPIES = 4  # Copies of a call's guesses held at once: noise, direction, guess, one temporary.
SUMS_IN_DOUBLE = 4  # Sums over a block held at once: the total, its image in weight space, the errors, those that wait.

AnySpace = Literal["activation", "weight", "parameter"]


def block_sizes(max_guesses: int) -> Iterator[int]:
    """The number of guesses in a block of each look. It grows by half until ``max_guesses`` are used."""
    left, planned = max_guesses // BLOCKS, float(FIRST_BLOCK)
    while left > 0:
        size = min(round(planned), left)
        yield size
        left, planned = left - size, planned * GROWTH


class Blocks:
    """Draws looks of blocks and hands the sums of their errors to each space's `GuessErrors`."""

    def __init__(
        self,
        estimator: Estimator,
        reference: Reference,
        space: AnySpace | None,
        memory: int,
        workers: int | None = None,
    ):
        """``memory`` in bytes bounds how many of the ``workers`` are used.

        Raises:
            ValueError: a space without guesses, a gradient of zero, a memory too small for one worker.
        """
        self._estimator, self._reference = estimator, reference
        with torch.no_grad(), full_precision(reference):
            # Also makes what is made once per snapshot, on the main thread.
            probe = guesses_of(estimator, reference, 1, torch.Generator(reference.device).manual_seed(0))
            exact = probe.exact(reference)
        if space is not None and space not in exact:
            raise ValueError(f"the estimator makes no guess in {space!r} space, only in: {', '.join(exact)}")
        exact = {name: exact[name] for name in exact if space in (None, name)}
        self.not_looked_at = probe.not_looked_at(reference)
        self._numbers = max(1, probe.numbers_per_guess())
        self._bytes_of_number = probe.arrays()[0].element_size()
        self._workers = self._workers_within(memory, workers, exact)
        self.precision = ROUNDING * probe.precision()
        self.errors = [
            GuessErrors(name, of_space.names, [_double(part) for part in of_space.gradients], BLOCKS, self.precision)
            for name, of_space in exact.items()
        ]

    def _workers_within(self, memory: int, workers: int | None, exact: Mapping[str, Compared]) -> int:
        kept = sum(
            bytes_needed(name, [tuple(gradient.shape) for gradient in of_space.gradients], BLOCKS)
            for name, of_space in exact.items()
        )
        numbers = sum(gradient.numel() for of_space in exact.values() for gradient in of_space.gradients)
        in_call = max(NUMBERS_PER_CALL, self._numbers) * self._bytes_of_number
        block = WORKING_COPIES * in_call + SUMS_IN_DOUBLE * 8 * numbers
        if memory < kept + block:
            needed = -(-(kept + block) // 2**20)
            raise ValueError(
                f"memory must be at least {needed} MiB ({needed << 20} bytes) to check this estimator on this network, "
                f"got {memory} bytes"
            )
        if self._reference.one_thread:
            return 1
        if workers is None:
            workers = (os.cpu_count() or 1) if self._numbers >= NUMBERS_WORTH_THREADS else 1
        return min(workers, BLOCKS, (memory - kept) // block)

    def draw(self, seeds: Seeds, look: int, block_size: int) -> None:
        """Look number ``look``: `BLOCKS` blocks of ``block_size`` guesses."""
        for errors in self.errors:
            errors.start(block_size)
        blocks = in_order(partial(self._block, seeds, look, block_size), BLOCKS, self._workers)
        for block, of_spaces in enumerate(blocks):
            for errors, sums in zip(self.errors, of_spaces, strict=True):
                if not np.isfinite(sums).all():
                    raise ValueError(f"the estimator made a guess that is NaN or infinite (seed {seeds.seed})")
                errors.take(block, sums)
        for errors in self.errors:
            errors.finish()

    def _block(self, seeds: Seeds, look: int, block_size: int, block: int) -> list[NDArray[np.float64]]:
        """Sums over the guesses of one block, flattened, an array a space."""
        generator, at_once = seeds.generator(look, block), max(1, NUMBERS_PER_CALL // self._numbers)
        totals: list[Tensor] = []
        # Both are settings of a thread.
        with torch.no_grad(), full_precision(self._reference):
            for start in range(0, block_size, at_once):
                guesses = guesses_of(self._estimator, self._reference, min(at_once, block_size - start), generator)
                new = [total.double() for total in guesses.total()]
                totals = [old + more for old, more in zip(totals, new, strict=True)] if totals else new
            sums = guesses.by_space(self._reference, tuple(totals))
            flat = [torch.cat([total.flatten() for total in sums[errors.space]]) for errors in self.errors]
            return [array.cpu().numpy() for array in flat]


def _double(gradient: Tensor) -> NDArray[np.float64]:
    return gradient.double().cpu().numpy()
