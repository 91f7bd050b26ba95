"""Draws the guesses of some groups of a sample that are written out, or of all, block after block."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from fganalysis.capturing.precision import full_precision
from fganalysis.estimators import label
from fganalysis.estimators.guesses import Estimates
from fganalysis.measuring.blocks import Seeds, in_order
from fganalysis.measuring.direct import DirectSample
from fganalysis.measuring.group_ranges import GroupRange
from fganalysis.measuring.guess_sums import Kept
from fganalysis.measuring.kept_sums import SECONDS_BETWEEN, KeptSums
from fganalysis.measuring.parts_of_blocks import Blocks


def drawn(
    sample: DirectSample,
    groups: GroupRange,
    *,
    workers: int | None,
    progress: bool,
    keep_sums: str | Path | None,
) -> Kept:
    """Draws the guesses of some groups of a sample. workers, progress, keep_sums: as in `fganalysis.sample`.

    Returns:
        What is kept of these guesses, with the groups and guesses in their order in the range.

    Raises:
        ValueError: guesses that are wrong or not finite; a device without memory for a block.
    """
    snapshot, block_size = sample.snapshot, sample.block_size
    seeds = Seeds.of(sample.seed, snapshot, sample.estimator)
    of_blocks = Blocks(sample.estimator, snapshot, block_size)
    kept = sample.nothing_kept(groups)
    n_guesses = groups.n_guesses(sample.n_guesses, block_size)
    n_blocks = -(-n_guesses // block_size)
    workers = 1 if sample.alone else min(workers or os.cpu_count() or 1, sample.in_flight)

    def run(first: int, number: int) -> None:
        # Both are settings of a thread.
        with torch.no_grad(), full_precision(snapshot):
            index = first + number

            def keep(guesses: Estimates, place: int) -> None:
                start = index * block_size + place
                if start < n_guesses:
                    guesses = guesses.first(n_guesses - start)
                    kept.scalars.write(guesses, snapshot, start, sample.seed)
                    kept.groups.add(index % len(groups), sample.sums(guesses))

            of_blocks.each(partial(seeds.generator, groups.block(index)), keep)

    sums_kept = None if keep_sums is None else KeptSums.of(keep_sums, sample, groups)
    held = 0 if sums_kept is None else sums_kept.read_into(kept)
    if held > n_guesses:  # The file stays as it is.
        sums_kept, held = None, 0
    done = held // block_size
    complete = n_guesses // block_size  # Blocks; a last one that is cut short is not kept.

    def blocks() -> Iterator[None]:
        written, start = time.monotonic(), done
        while start < n_blocks:
            # In one go where nothing is kept: at each stop workers wait for each other.
            stop = n_blocks if sums_kept is None or start >= complete else min(start + 4 * len(groups), complete)
            # The blocks of a group are added one after the other, as the order of a sum changes its last digit.
            yield from in_order(partial(run, start), stop - start, workers, len(groups))
            late = time.monotonic() - written > SECONDS_BETWEEN
            if sums_kept is not None and (stop == complete or (late and stop < complete)):
                kept.scalars.refuse_infinite(sample.seed, 0, stop * block_size)
                sums_kept.write(kept, stop * block_size)
                written = time.monotonic()
            start = stop

    with sample.threads():
        for _ in tqdm(blocks(), label(sample.estimator), n_blocks, initial=done, disable=not progress):
            pass
    kept.scalars.refuse_infinite(sample.seed, 0, n_guesses)
    return kept
