"""sample(): many guesses of one estimator on one snapshot, in seeded blocks, as one Dataset.

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
from fganalysis.arguments import check_flag, check_seed, check_whole
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.measuring.blocks import MOST_GROUPS, Seeds, calling_thread_single, fitting, in_order
from fganalysis.measuring.by_law import dataset_by_law
from fganalysis.measuring.guess_sums import BlockSums, GroupSums, GuessScalars
from fganalysis.measuring.kept_sums import SECONDS_BETWEEN, KeptSums
from fganalysis.measuring.parts_of_blocks import Blocks
from fganalysis.measuring.sampled_dataset import RawNumbers, attributes, sampled_dataset
from fganalysis.measuring.sound_guesses import check_arguments, guesses_of
from fganalysis.measuring.streamed import dataset_streamed, is_streamed
from fganalysis.results import schema

# The sizes of a block are tuned for speed: to tune them again, change them and run `python -m studies.throughput`. A
# change gives other random numbers, because each block has its own generator.
NUMBERS_PER_BLOCK = 2**20  # Fits the caches. Larger blocks spend their time on page faults.
MOST_GUESSES_PER_BLOCK = 16
BYTES_OF_GROUPS = 2**29
WORKING_COPIES = 4  # Noise, direction, its image in weight space, one temporary.
SCALAR_BYTES = 8  # Of a scalar or a sum in double precision.


def check_settings(n_guesses: object, seed: object, memory: object, progress: object) -> None:
    """Checks the settings that do not depend on the estimator.

    Raises:
        ValueError: fewer than two guesses, a wrong seed, a ``memory`` that is not a positive whole number of bytes, or
            a ``progress`` that is not True or False.
    """
    check_whole("n_guesses", n_guesses, 2)
    check_seed("seed", seed)
    check_whole("memory", memory, 1)
    check_flag("progress", progress)


def sample(
    snapshot: Snapshot,
    estimator: str | Estimator,
    n_guesses: int = 4096,
    seed: int = 0,
    *,
    block_size: int | None = None,
    memory: int = 2**30,
    workers: int | None = None,
    progress: bool = False,
    by_law: bool = False,
    keep_sums: str | Path | None = None,
) -> xr.Dataset:
    """Measures an estimator: all of `schema.QUANTITIES`, such as bias, variance and cosine, with errors and intervals.

    Args:
        snapshot: from `capture`.
        estimator: a key of `ESTIMATORS` or an instance.
        n_guesses: number of guesses.
        seed: of the noise. The same seed gives the same numbers.
        block_size: guesses in a block. Another size gives other noise. Default: what fits the caches, at most 16.
        memory: bytes for sums over groups of guesses, for two numbers for each guess, layer and space, and for the
            blocks that are computed at the same time. It limits the number of such blocks, and changes no result.
            Where a device runs out of memory for a block, the same guesses are made in parts, whose sums round in
            another order.
            Factors that an estimator keeps with the snapshot, as the singular vectors of `OrthogonalUpstream`, are not
            counted. Weight guesses on networks of more than 2²⁴ weights are streamed: each direction is drawn twice,
            part by part, so that their memory does not grow with the network.
        workers: threads on the CPU; default the number of cores (one on a GPU or in
            forward mode).
        progress: shows a bar on the terminal.
        by_law: draws guesses at the weights by their law, at a cost that does not grow with the network: exact for
            `WeightPerturbation` and `MultiTangent` with Gaussian or spherical noise and for means of these
            (`Averaged`), and the limit of small epsilon for central differences. The attribute ``by_law`` is then 1,
            and ``metrics_left_out`` lists the variables of registered metrics that take the guesses themselves.
        keep_sums: a file for the sums over groups of guesses, written every minute and at the end. A run with the same
            file goes on from what it holds, also with more guesses, and gives the numbers of a run without it. Groups
            must be as many: ask for a multiple of 64 blocks, as of 1024 guesses of a small network. Sums of anything
            else are renamed, and named in the log.

    Returns:
        Dataset over (space, layer); the layers are the names of the taps and "all". It also has the scalars of every
        guess and the Gram matrix of group means, from which all estimates are computed. The attribute
        ``not_looked_at`` is a JSON list of the network's trainable parameters that are in no layer. Neither autocast
        nor torch's default data type changes the numbers.

    Raises:
        ValueError: n_guesses below 2; an unknown estimator; memory too small for one block; a seed below 0; no
            snapshot; a gradient that is not finite; guesses of a wrong number, of another shape or data type than the
            gradient, or not finite; a device without memory for a block whose guesses cannot be made in parts;
            ``by_law`` with an estimator whose guesses have no such law, or with a
            ``block_size``.
    """
    check_arguments(snapshot, seed)
    check_settings(n_guesses, seed, memory, progress)
    for name, value in (("block_size", block_size), ("workers", workers)):
        if value is not None:
            check_whole(name, value)
    chosen, name = resolve(estimator), label(estimator)
    check_flag("by_law", by_law)
    if keep_sums is not None and (by_law or (block_size is None and is_streamed(chosen, snapshot))):
        raise ValueError("keep_sums is for guesses that are written out whole, and these are not: leave it out")
    if by_law:
        if block_size is not None:
            raise ValueError("block_size is of guesses that are written out: leave it out, or use by_law=False")
        with torch.no_grad(), full_precision(snapshot):
            squares = _finite_gradients(snapshot, at_activations=False)
        return dataset_by_law(
            snapshot, chosen, squares, n_guesses, seed, memory=memory, workers=workers, progress=progress
        )
    if block_size is None and is_streamed(chosen, snapshot):
        with torch.no_grad(), full_precision(snapshot):
            squares = _finite_gradients(snapshot, at_activations=False)
            return dataset_streamed(
                snapshot, chosen, squares, n_guesses, seed, memory=memory, workers=workers, progress=progress
            )
    with torch.no_grad(), full_precision(snapshot):
        seeds = Seeds.of(seed, snapshot, chosen)
        # The first call makes what is made once per snapshot, on the main thread, and tells the size of a guess.
        probe = guesses_of(chosen, snapshot, 1, seeds.generator(2**31))
        probe.inner_products(snapshot)
        squared_gradient = _finite_gradients(snapshot, isinstance(probe, ActivationEstimates))
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
        of_blocks = Blocks(chosen, snapshot, block_size)
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
            for _ in tqdm(blocks(), name, n_blocks, initial=done, disable=not progress):
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
    dataset = sampled_dataset(snapshot, name, raw, [estimates, *of_metrics])
    not_looked_at = snapshot.untapped_parameters if isinstance(probe, ActivationEstimates) else ()
    dataset.attrs = attributes(snapshot, chosen, n_guesses, seed, block_size, not_looked_at)
    return schema.validate(schema.annotate(dataset))


def default_block_size(numbers_per_guess: int) -> int:
    """The largest power of two of guesses that fits `NUMBERS_PER_BLOCK`, between 1 and `MOST_GUESSES_PER_BLOCK`."""
    fitting = max(1, NUMBERS_PER_BLOCK // numbers_per_guess)
    return min(MOST_GUESSES_PER_BLOCK, 1 << (fitting.bit_length() - 1))


def _finite_gradients(snapshot: Snapshot, at_activations: bool) -> np.ndarray:
    """`squared_gradients`, refused where no guess can be compared with them."""
    squares = squared_gradients(snapshot, at_activations)
    if np.isinf(squares).any() or not np.isfinite(squares[:, -1]).all():
        raise ValueError("the exact gradient has NaN or infinite entries, so no guess can be compared with it")
    return squares
