"""Looks of blocks of guesses, each block from its own generator, and the sums of their errors in every space."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.estimators import Estimator
from fganalysis.guess_errors import GuessErrors
from fganalysis.seeded_blocks import Seeds, one_torch_thread
from fganalysis.snapshot import Snapshot
from fganalysis.sound_guesses import first_guess, guesses_of

BLOCKS = 64
FIRST_BLOCK = 16
GROWTH = 1.5
LEAST_GUESSES = 2 * BLOCKS * FIRST_BLOCK
NUMBERS_PER_CALL = 2**20
NUMBERS_WORTH_THREADS = 2**12
ROUNDING = 32.0  # What rounding may add to a guess, in units of the data type's precision.

Space = Literal["activation", "weight"]


def block_sizes(max_guesses: int) -> Iterator[int]:
    """Guesses a block, look after look: growing by half, as long as they last."""
    left, planned = max_guesses // BLOCKS, float(FIRST_BLOCK)
    while left > 0:
        size = min(round(planned), left)
        yield size
        left, planned = left - size, planned * GROWTH


class Blocks:
    """Draws looks of blocks and hands the sums of their errors to each space's `GuessErrors`."""

    def __init__(self, estimator: Estimator, snapshot: Snapshot, space: Space | None):
        self._estimator, self._snapshot = estimator, snapshot
        with torch.no_grad():
            # Also makes what is made once per snapshot, on the main thread.
            probe = first_guess(estimator, snapshot, torch.Generator(snapshot.outputs.device).manual_seed(0))
            self._at_activations = probe.dense(snapshot)[0] is not None
        self._numbers = probe.numbers_per_guess()
        exact: dict[str, tuple[Tensor, ...]] = {"weight": snapshot.weight_gradients}
        if self._at_activations:
            exact = {"activation": snapshot.gradients, **exact}
        if space is not None and space not in exact:
            raise ValueError(f"the estimator makes no guess in {space!r} space, only in: {', '.join(exact)}")
        self._exact = {name: [g.double() for g in exact[name]] for name in exact if space in (None, name)}
        self.precision = ROUNDING * torch.finfo(snapshot.outputs.dtype).eps
        self.errors = [
            GuessErrors(name, snapshot.layers, [gradient.cpu().numpy() for gradient in gradients], self.precision)
            for name, gradients in self._exact.items()
        ]
        if any(errors.norm == 0 for errors in self.errors):
            raise ValueError("the gradient is zero, so a relative bias has no meaning")

    def draw(self, seeds: Seeds, look: int, block_size: int, workers: int | None) -> None:
        """Look number ``look``: `BLOCKS` blocks of ``block_size`` guesses."""
        if self._snapshot.outputs.is_cuda:
            workers = 1
        elif workers is None:
            workers = (os.cpu_count() or 1) if self._numbers >= NUMBERS_WORTH_THREADS else 1
        run = partial(self._block, seeds, look, block_size)
        if workers == 1:
            blocks = list(map(run, range(BLOCKS)))
        else:
            threads = torch.get_num_threads()
            with ThreadPoolExecutor(workers, initializer=one_torch_thread) as pool:
                blocks = list(pool.map(run, range(BLOCKS)))
            torch.set_num_threads(threads)
        for errors, sums in zip(self.errors, zip(*blocks, strict=True), strict=True):
            stacked = np.stack(sums)
            if not np.isfinite(stacked).all():
                raise ValueError(f"the estimator made a guess that is NaN or infinite (seed {seeds.seed})")
            errors.add(stacked, block_size)

    def _block(self, seeds: Seeds, look: int, block_size: int, block: int) -> list[NDArray[np.float64]]:
        """Sums over the guesses of one block of their errors, flattened, an array a space."""
        generator, at_once = seeds.generator(look, block), max(1, NUMBERS_PER_CALL // self._numbers)
        totals: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, block_size, at_once):
                guesses = guesses_of(self._estimator, self._snapshot, min(at_once, block_size - start), generator)
                new = [total.double() for total in guesses.total()]
                totals = [old + more for old, more in zip(totals, new, strict=True)] if totals else new
            sums = {"activation": totals, "weight": totals}
            if self._at_activations:
                taps = zip(totals, self._snapshot.taps, strict=True)
                sums["weight"] = [total.T @ tap.inputs.double() for total, tap in taps]
            flat = []
            for name, exact in self._exact.items():
                pairs = zip(sums[name], exact, strict=True)
                errors = torch.cat([(total - block_size * gradient).flatten() for total, gradient in pairs])
                flat.append(errors.cpu().numpy())
        return flat
