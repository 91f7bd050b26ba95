"""Guesses that are written out whole, in seeded blocks: the way of every estimator that has no cheaper one.

Guesses come in blocks of a fixed size, each with its own generator seeded from (seed, step, estimator, block). So the
numbers depend on neither memory, number of workers nor order, and a longer run begins with the shorter one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from fganalysis import metrics
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.measuring.blocks import MOST_GROUPS, Seeds, calling_thread_single, fitting, in_order
from fganalysis.measuring.guess_sums import BlockSums, GroupSums, GuessScalars
from fganalysis.measuring.kept_sums import SECONDS_BETWEEN, KeptSums
from fganalysis.measuring.parts_of_blocks import Blocks
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


def dataset_direct(
    snapshot: Snapshot,
    estimator: Estimator,
    n_guesses: int,
    seed: int,
    *,
    block_size: int | None,
    memory: int,
    workers: int | None,
    progress: bool,
    keep_sums: str | Path | None,
) -> xr.Dataset:
    """The Dataset of `fganalysis.sample`, whose arguments these are, for guesses that are written out.

    Raises:
        ValueError: what `fganalysis.sample` refuses of an estimator, its guesses, the gradient and the memory.
    """
    seeds = Seeds.of(seed, snapshot, estimator)
    # The first call makes what is made once per snapshot, on the main thread, and tells the size of a guess.
    probe = guesses_of(estimator, snapshot, 1, seeds.generator(2**31))
    probe.inner_products(snapshot)
    squared_gradient = finite_gradients(snapshot, isinstance(probe, ActivationEstimates))
    measures = metrics.registered()

    def block_of(guesses: Estimates) -> BlockSums:
        kept = [metric.kept(snapshot, guesses) for metric in measures]
        return BlockSums(len(guesses), guesses.total(), kept)

    pattern = block_of(probe)
    numbers = max(probe.numbers_per_guess(), 1)
    block_size = block_size or default_block_size(numbers)
    n_blocks = -(-n_guesses // block_size)
    bytes_per_guess = numbers * snapshot.like.element_size()
    most_groups = int(np.clip(BYTES_OF_GROUPS // bytes_per_guess, 8, MOST_GROUPS))
    # As many as leave all groups with the same number of blocks, or one less: intervals take them for equal.
    n_groups = -(-n_blocks // -(-n_blocks // most_groups))
    sums = sum(part.numel() for of_metric in pattern.kept for part in of_metric)
    n_scalars = 2 * len(schema.SPACES) * (len(snapshot.layers) + 1) * n_guesses
    kept = n_groups * bytes_per_guess + (n_groups * sums + n_scalars) * SCALAR_BYTES
    # Of each block also its sum.
    bytes_of_block = bytes_per_guess * (block_size * WORKING_COPIES + 1)
    in_flight = fitting(memory, kept, bytes_of_block, f" for blocks of {block_size}")
    # Forward mode hooks into the one network, and torch's dual levels are shared by threads: one worker.
    alone = snapshot.device.type != "cpu" or snapshot.autodiff == "forward"
    workers = 1 if alone else min(workers or os.cpu_count() or 1, in_flight)
    of_blocks = Blocks(estimator, snapshot, block_size)
    groups, scalars = GroupSums(n_groups, pattern), GuessScalars(probe, snapshot, n_guesses)

    def run(first: int, number: int) -> None:
        # Both are settings of a thread.
        with torch.no_grad(), full_precision(snapshot):
            index = first + number

            def keep(guesses: Estimates, place: int) -> None:
                start = index * block_size + place
                if start < n_guesses:
                    guesses = guesses.first(n_guesses - start)
                    scalars.write(guesses, snapshot, start, seed)
                    groups.add(index % n_groups, block_of(guesses))

            of_blocks.each(partial(seeds.generator, index), keep)

    sums_kept = None if keep_sums is None else KeptSums.of(keep_sums, snapshot, seeds, block_size, groups)
    held = 0 if sums_kept is None else sums_kept.read_into(groups, scalars)
    if held > n_guesses:  # The file stays as it is.
        sums_kept, held = None, 0
    done = held // block_size
    complete = n_guesses // block_size  # Blocks; a last one that is cut short is not kept.

    def blocks() -> Iterator[None]:
        written, start = time.monotonic(), done
        while start < n_blocks:
            # In one go where nothing is kept: at each stop workers wait for each other.
            stop = n_blocks if sums_kept is None or start >= complete else min(start + 4 * n_groups, complete)
            # The blocks of a group are added one after the other, as the order of a sum changes its last digit.
            yield from in_order(partial(run, start), stop - start, workers, n_groups)
            late = time.monotonic() - written > SECONDS_BETWEEN
            if sums_kept is not None and (stop == complete or (late and stop < complete)):
                scalars.refuse_infinite(seed, 0, stop * block_size)
                sums_kept.write(groups, scalars, stop * block_size)
                written = time.monotonic()
            start = stop

    # A single worker has one torch thread too: how many share a sum changes its last digit.
    with nullcontext() if alone else calling_thread_single():
        for _ in tqdm(blocks(), label(estimator), n_blocks, initial=done, disable=not progress):
            pass
        scalars.refuse_infinite(seed, 0, n_guesses)
        means = groups.means()
        gram = probe.error_grams(snapshot, means).cpu().numpy()
        group_of_guess = (np.arange(n_guesses) // block_size) % n_groups
        raw = RawNumbers.of(scalars, gram, group_of_guess, squared_gradient)
        estimates = raw.estimates(float(torch.finfo(snapshot.dtype).eps))
        sizes = groups.sizes.astype(float)
        of_metrics = [
            metric.estimated(snapshot, metrics.Groups(sizes, means, kept, estimates))
            for metric, kept in zip(measures, groups.kept, strict=True)
        ]
    dataset = sampled_dataset(snapshot, label(estimator), raw, [estimates, *of_metrics])
    not_looked_at = snapshot.untapped_parameters if isinstance(probe, ActivationEstimates) else ()
    dataset.attrs = attributes(snapshot, estimator, n_guesses, seed, block_size, not_looked_at)
    return schema.validate(schema.annotate(dataset))


def default_block_size(numbers_per_guess: int) -> int:
    """The largest power of two of guesses that fits `NUMBERS_PER_BLOCK`, between 1 and `MOST_GUESSES_PER_BLOCK`."""
    fitting = max(1, NUMBERS_PER_BLOCK // numbers_per_guess)
    return min(MOST_GUESSES_PER_BLOCK, 1 << (fitting.bit_length() - 1))
