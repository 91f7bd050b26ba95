"""Guesses that are written out whole, in seeded blocks: the way of every estimator that has no cheaper one.

Guesses come in blocks of a fixed size, each with its own generator seeded from (seed, step, estimator, block). So the
numbers depend on neither memory, number of workers nor order, and a longer run begins with the shorter one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from fganalysis import metrics
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, settings
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.measuring.blocks import MOST_GROUPS, Seeds, calling_thread_single, fitting
from fganalysis.measuring.group_ranges import FEWEST_GROUPS, GroupRange, even_groups, fitting_groups
from fganalysis.measuring.guess_sums import BlockSums, GroupSums, GuessScalars, Kept
from fganalysis.measuring.sampled_dataset import RawNumbers, attributes, sampled_dataset
from fganalysis.measuring.sound_guesses import finite_gradients, guesses_of
from fganalysis.results import schema

# The sizes of a block are tuned for speed: to tune them again, change them and run `python -m studies.throughput`. A
# change gives other random numbers, because each block has its own generator.
NUMBERS_PER_BLOCK = 2**20  # Fits the caches. Larger blocks spend their time on page faults.
MOST_GUESSES_PER_BLOCK = 16
BYTES_OF_GROUPS = 2**29
WORKING_COPIES = 4  # Noise, direction, its image in weight space, one temporary.
SCALAR_BYTES = 8  # Of a scalar or a sum in double precision.


@dataclass(frozen=True)
class DirectSample:
    """A sample of guesses that are written out: how they are drawn, and the Dataset made of what is kept of them.

    Attributes:
        snapshot, estimator, n_guesses, seed: as in `fganalysis.sample`. block_size: guesses in a block. n_groups: of
            guesses, whose sums are kept. most_groups: that there would be if memory were no matter. in_flight: blocks
            that fit the memory at the same time. probe: a guess. squared_gradient: exact ‖g‖², (space, layer), "all"
            last. measures: the registered metrics. pattern: what is kept of the probe, which gives the shapes.
    """

    snapshot: Snapshot
    estimator: Estimator
    n_guesses: int
    seed: int
    block_size: int
    n_groups: int
    most_groups: int
    in_flight: int
    probe: Estimates
    squared_gradient: np.ndarray
    measures: Sequence[metrics.Metric]
    pattern: BlockSums

    @classmethod
    def of(
        cls, snapshot: Snapshot, estimator: Estimator, n_guesses: int, seed: int, block_size: int | None, memory: int
    ) -> DirectSample:
        """Raises ValueError for what `fganalysis.sample` refuses of an estimator, the gradient and the memory."""
        # The first call makes what is made once per snapshot, on the main thread, and tells the size of a guess.
        probe = guesses_of(estimator, snapshot, 1, Seeds.of(seed, snapshot, estimator).generator(2**31))
        probe.inner_products(snapshot)
        squared_gradient = finite_gradients(snapshot, isinstance(probe, ActivationEstimates))
        measures = metrics.registered()
        numbers = max(probe.numbers_per_guess(), 1)
        block_size = block_size or default_block_size(numbers)
        n_blocks = -(-n_guesses // block_size)
        bytes_per_guess = numbers * snapshot.like.element_size()
        pattern = _sums(snapshot, measures, probe)
        sums = sum(part.numel() for of_metric in pattern.kept for part in of_metric)
        bytes_of_group = bytes_per_guess + sums * SCALAR_BYTES
        scalars = 2 * len(schema.SPACES) * (len(snapshot.layers) + 1) * n_guesses * SCALAR_BYTES
        # Of each block also its sum.
        bytes_of_block = bytes_per_guess * (block_size * WORKING_COPIES + 1)
        most = int(np.clip(BYTES_OF_GROUPS // bytes_per_guess, FEWEST_GROUPS, MOST_GROUPS))
        n_groups = fitting_groups(n_blocks, most, memory - scalars - bytes_of_block, bytes_of_group)
        kept = n_groups * bytes_of_group + scalars
        in_flight = fitting(memory, kept, bytes_of_block, f" for blocks of {block_size}")
        most = even_groups(n_blocks, most)
        return cls(
            snapshot,
            estimator,
            n_guesses,
            seed,
            block_size,
            n_groups,
            most,
            in_flight,
            probe,
            squared_gradient,
            measures,
            pattern,
        )

    def nothing_kept(self, groups: GroupRange) -> Kept:
        """Sums of nothing over some groups, and room for the numbers of their guesses."""
        n_guesses = groups.n_guesses(self.n_guesses, self.block_size)
        return Kept(GroupSums(len(groups), self.pattern), GuessScalars(self.probe, self.snapshot, n_guesses))

    def dataset(self, kept: Kept) -> xr.Dataset:
        """The Dataset made of what is kept of all groups. The sums become means in place."""
        group_of_guess = (np.arange(self.n_guesses) // self.block_size) % self.n_groups
        with self.threads():
            means = kept.groups.means()
            gram = self.probe.error_grams(self.snapshot, means).cpu().numpy()
            raw = RawNumbers.of(kept.scalars, gram, group_of_guess, self.squared_gradient, self.most_groups)
            estimates = raw.estimates(float(torch.finfo(self.snapshot.dtype).eps))
            sizes = kept.groups.sizes.astype(float)
            of_metrics = [
                metric.estimated(self.snapshot, metrics.Groups(sizes, means, sums, estimates))
                for metric, sums in zip(self.measures, kept.groups.kept, strict=True)
            ]
        name = label(self.estimator)
        dataset = sampled_dataset(self.snapshot, name, raw, [estimates, *of_metrics])
        not_looked_at = self.probe.not_looked_at(self.snapshot)
        dataset.attrs = attributes(
            self.snapshot, name, settings(self.estimator), raw, self.seed, self.block_size, not_looked_at
        )
        return schema.validate(schema.annotate(dataset))

    @property
    def all_groups(self) -> GroupRange:
        return GroupRange(0, self.n_groups, self.n_groups)

    @property
    def alone(self) -> bool:
        """One worker."""
        return self.snapshot.one_thread

    def threads(self) -> AbstractContextManager[None]:
        """A single worker has one torch thread too: how many share a sum changes its last digit."""
        return nullcontext() if self.alone else calling_thread_single()

    def sums(self, guesses: Estimates) -> BlockSums:
        """What is kept of guesses besides their scalars."""
        return _sums(self.snapshot, self.measures, guesses)


def _sums(snapshot: Snapshot, measures: Sequence[metrics.Metric], guesses: Estimates) -> BlockSums:
    return BlockSums(len(guesses), guesses.total(), [metric.kept(snapshot, guesses) for metric in measures])


def default_block_size(numbers_per_guess: int) -> int:
    """The largest power of two of guesses that fits `NUMBERS_PER_BLOCK`, between 1 and `MOST_GUESSES_PER_BLOCK`."""
    fitting = max(1, NUMBERS_PER_BLOCK // numbers_per_guess)
    return min(MOST_GUESSES_PER_BLOCK, 1 << (fitting.bit_length() - 1))
