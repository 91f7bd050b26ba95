"""Looks of blocks of guesses, each block from its own generator, and the sums of their errors in every space."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.assertions.guess_errors import GuessErrors, bytes_needed
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap
from fganalysis.estimators import Estimator
from fganalysis.estimators.guesses import ActivationEstimates
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

Space = Literal["activation", "weight"]


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
        self, estimator: Estimator, snapshot: Snapshot, space: Space | None, memory: int, workers: int | None = None
    ):
        """``memory`` in bytes bounds how many of the ``workers`` are used.

        Raises:
            ValueError: a space without guesses, a gradient of zero, a memory too small for one worker.
        """
        self._estimator, self._snapshot = estimator, snapshot
        with torch.no_grad(), full_precision(snapshot):
            # Also makes what is made once per snapshot, on the main thread.
            probe = guesses_of(estimator, snapshot, 1, torch.Generator(snapshot.device).manual_seed(0))
            gradients: dict[str, tuple[Tensor, ...]] = {"weight": snapshot.weight_gradients}
            names = {"weight": snapshot.layers, "activation": _names(snapshot.taps)}
            self._at_activations = isinstance(probe, ActivationEstimates)
            if self._at_activations:
                # There is no guess for parameters of no tap.
                names["weight"] = tuple(layer.name for layer in snapshot.weights if layer.taps)
                at_weights = self._of_tapped(snapshot.weight_gradients)
                gradients = {"activation": snapshot.gradients, "weight": at_weights}
        if space is not None and space not in gradients:
            raise ValueError(f"the estimator makes no guess in {space!r} space, only in: {', '.join(gradients)}")
        exact = {name: gradients[name] for name in gradients if space in (None, name)}
        self._numbers = max(1, probe.numbers_per_guess())
        self._workers = self._workers_within(memory, workers, exact)
        self.precision = ROUNDING * torch.finfo(snapshot.dtype).eps
        self.errors = [
            GuessErrors(name, names[name], [_double(gradient) for gradient in tensors], BLOCKS, self.precision)
            for name, tensors in exact.items()
        ]

    @property
    def not_looked_at(self) -> tuple[str, ...]:
        """The trainable parameters for which there is no guess."""
        return self._snapshot.untapped_parameters if self._at_activations else ()

    def _of_tapped(self, of_layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What belongs to the layers that have taps."""
        pairs = zip(self._snapshot.weights, of_layers, strict=True)
        return tuple(tensor for layer, tensor in pairs if layer.taps)

    def _workers_within(self, memory: int, workers: int | None, exact: dict[str, tuple[Tensor, ...]]) -> int:
        kept = sum(
            bytes_needed(name, [tuple(gradient.shape) for gradient in gradients], BLOCKS)
            for name, gradients in exact.items()
        )
        numbers = sum(gradient.numel() for gradients in exact.values() for gradient in gradients)
        in_call = max(NUMBERS_PER_CALL, self._numbers) * self._snapshot.like.element_size()
        block = WORKING_COPIES * in_call + SUMS_IN_DOUBLE * 8 * numbers
        if memory < kept + block:
            needed = -(-(kept + block) // 2**20)
            raise ValueError(
                f"memory must be at least {needed} MiB ({needed << 20} bytes) to check this estimator on this network, "
                f"got {memory} bytes"
            )
        # Forward mode hooks into the one network, and torch's dual levels are shared by threads: one worker.
        if self._snapshot.device.type != "cpu" or self._snapshot.autodiff == "forward":
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
        with torch.no_grad(), full_precision(self._snapshot):
            for start in range(0, block_size, at_once):
                guesses = guesses_of(self._estimator, self._snapshot, min(at_once, block_size - start), generator)
                new = [total.double() for total in guesses.total()]
                totals = [old + more for old, more in zip(totals, new, strict=True)] if totals else new
            sums = {"activation": totals, "weight": totals}
            if self._at_activations:
                at_weights = self._snapshot.at_weights([total.unsqueeze(0) for total in totals])
                sums["weight"] = list(self._of_tapped(at_weights))
            flat = [torch.cat([total.flatten() for total in sums[errors.space]]) for errors in self.errors]
            return [array.cpu().numpy() for array in flat]


def _names(taps: Sequence[Tap]) -> tuple[str, ...]:
    """The taps' names; a module that is called again, or returns several tensors, has a number for each."""
    names = [tap.name for tap in taps]
    return tuple(
        name if names.count(name) == 1 else f"{name}, output {names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    )


def _double(gradient: Tensor) -> NDArray[np.float64]:
    return gradient.double().cpu().numpy()
