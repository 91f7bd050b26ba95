"""sample(): many guesses of one estimator on one snapshot, in seeded blocks, as one Dataset.

Guesses come in blocks of a fixed size, each with its own generator seeded from (seed, step, estimator, block). So the
numbers depend on neither memory, number of workers nor order, and a longer run begins with the shorter one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from fganalysis import metrics
from fganalysis.arguments import check_flag, check_seed, check_whole
from fganalysis.capturing.coordinates import coordinates, over_layers, squared_gradients
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve, settings
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, Sums
from fganalysis.measuring.blocks import Seeds, in_order
from fganalysis.measuring.sound_guesses import check_arguments, first_guess, guesses_of
from fganalysis.results import schema
from fganalysis.statistics import quantities

NUMBERS_PER_BLOCK = 2**20  # A block that fits the caches: larger ones spend their time on page faults.
MOST_GUESSES_PER_BLOCK = 16
MOST_GROUPS = 64
BYTES_OF_GROUPS = 2**29
WORKING_COPIES = 4  # Noise, direction, its image in weight space, one temporary.
SCALAR_BYTES = 8  # Of a scalar or a sum in double precision.


@dataclass(frozen=True)
class _Block:
    """What one block leaves behind beside its scalars: how many guesses, and sums over them, a metric's each."""

    size: int
    total: Sums
    kept: list[Sums]


class _Groups:
    """Running sums of guesses in a fixed number of disjoint groups; block i belongs to group i modulo that number."""

    def __init__(self, n_groups: int, block: _Block):
        """``block`` tells the shapes. The sums are allocated here, once, and not by the threads that draw blocks.

        totals: of the guesses, a group each. kept: of each metric, a group each.
        """
        self.sizes = np.zeros(n_groups, dtype=np.int64)
        self.totals: list[Sums] = [tuple(map(torch.zeros_like, block.total)) for _ in range(n_groups)]
        self.kept: list[list[Sums]] = [
            [tuple(map(torch.zeros_like, sums)) for _ in range(n_groups)] for sums in block.kept
        ]

    def add(self, group: int, block: _Block) -> None:
        self.sizes[group] += block.size
        kept = [of_metric[group] for of_metric in self.kept]
        for sums, more in zip([self.totals[group], *kept], [block.total, *block.kept], strict=True):
            for total, part in zip(sums, more, strict=True):
                total.add_(part)

    def means(self) -> list[Sums]:
        """The mean of every group; the sums are turned into it in place, so nothing can be added after."""
        return [tuple(t.div_(int(n)) for t in total) for total, n in zip(self.totals, self.sizes, strict=True)]


class _Scalars:
    """⟨ĝ, g⟩ and ‖ĝ‖² of every guess, (space, layer, guess), in arrays that are allocated before any block is drawn.

    Small arrays of each block's would keep the memory of the threads that made them from being given back.
    """

    def __init__(self, guess: Estimates, snapshot: Snapshot, n_guesses: int):
        shape = (len(schema.SPACES), len(snapshot.layers), n_guesses)
        self.inner_products, self.squared_norms = np.empty(shape), np.empty(shape)
        at_activations = isinstance(guess, ActivationEstimates)
        self._known = np.zeros(shape[:2], dtype=bool)
        self._known[schema.SPACES.index("weight")] = True
        if at_activations:
            self._known[:] = [bool(layer.taps) for layer in snapshot.weights]

    def write(self, guesses: Estimates, snapshot: Snapshot, start: int, seed: int) -> None:
        """Those of a block whose first guess is number ``start``.

        Raises:
            ValueError: a guess that is NaN or infinite, or whose squared norm is.
        """
        inner, norms = (part.cpu().numpy() for part in guesses.inner_products(snapshot))
        if not np.isfinite(norms[self._known]).all():
            raise ValueError(f"the estimator made a guess that is NaN, infinite or too long to square (seed {seed})")
        self.inner_products[..., start : start + len(guesses)] = inner
        self.squared_norms[..., start : start + len(guesses)] = norms


def check_settings(n_guesses: object, seed: object, memory: object, progress: object) -> None:
    """What is the same for every estimator.

    Raises:
        ValueError: fewer than two guesses, a wrong seed, another number of bytes than a whole one, another flag.
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
) -> xr.Dataset:
    """Measures an estimator: bias, variance, cosine and the rest of `schema.QUANTITIES`, each with error and interval.

    Args:
        snapshot: from `capture`.
        estimator: a key of `ESTIMATORS` or an instance.
        n_guesses: how many guesses.
        seed: of the noise; the same seed gives the same numbers.
        block_size: guesses per block; part of what determines the numbers. Default: what fits the caches, at most 16.
        memory: bytes of working space: sums over groups of guesses, two numbers a guess, layer and space, and blocks
            in flight. Bounds how many blocks are in flight, not the numbers.
        workers: threads on the CPU; default the number of cores (one on a GPU or in
            forward mode).
        progress: shows a bar on the terminal.

    Returns:
        Dataset over (space, layer), the layers being the taps' names and "all"; with the raw scalars per guess and the
        Gram matrix of group means, from which everything else was derived. The attribute ``not_looked_at`` is a JSON
        list of the network's trainable parameters that are in no layer. Neither autocast nor torch's default data type
        changes the numbers.

    Raises:
        ValueError: n_guesses below 2, an unknown estimator, memory too small for one block, a seed below 0, no
            snapshot, a gradient that is not finite, guesses that are not as many as asked for, of another shape
            or data type than the gradient, or not finite.
    """
    check_arguments(snapshot, seed)
    check_settings(n_guesses, seed, memory, progress)
    for name, value in (("block_size", block_size), ("workers", workers)):
        if value is not None:
            check_whole(name, value)
    chosen, name = resolve(estimator), label(estimator)
    with torch.no_grad(), full_precision(snapshot):
        seeds = Seeds.of(seed, snapshot, chosen)
        # The first call makes what is made once per snapshot, on the main thread, and tells the size of a guess.
        probe = first_guess(chosen, snapshot, seeds.generator(2**31))
        probe.inner_products(snapshot)
        squared_gradient = _finite_gradients(snapshot, isinstance(probe, ActivationEstimates))
        measures = metrics.registered()

        def block_of(guesses: Estimates) -> _Block:
            kept = [metric.kept(snapshot, guesses) for metric in measures]
            return _Block(len(guesses), guesses.total(), kept)

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
        in_flight = _blocks_in_flight(memory, kept, bytes_per_guess, block_size)
        # Forward mode hooks into the one network, and torch's dual levels are shared by threads: one worker.
        alone = snapshot.like.is_cuda or snapshot.autodiff == "forward"
        workers = 1 if alone else min(workers or os.cpu_count() or 1, in_flight)
        groups, scalars = _Groups(n_groups, pattern), _Scalars(probe, snapshot, n_guesses)

        def run(index: int) -> _Block:
            # Both are settings of a thread.
            with torch.no_grad(), full_precision(snapshot):
                start = index * block_size
                guesses = guesses_of(chosen, snapshot, block_size, seeds.generator(index)).first(n_guesses - start)
                scalars.write(guesses, snapshot, start, seed)
                return block_of(guesses)

        blocks = in_order(run, n_blocks, workers)
        with _calling_thread_single() if workers > 1 else nullcontext():
            for index, block in enumerate(tqdm(blocks, name, n_blocks, disable=not progress)):
                groups.add(index % n_groups, block)
            means = groups.means()
            gram = probe.error_grams(snapshot, means).cpu().numpy()
            group_of_guess = (np.arange(n_guesses) // block_size) % n_groups
            raw = _Raw.of(scalars, gram, group_of_guess, squared_gradient)
            estimates = raw.estimates(float(torch.finfo(snapshot.dtype).eps))
            sizes = groups.sizes.astype(float)
            of_metrics = [
                metric.estimated(snapshot, metrics.Groups(sizes, means, kept, estimates))
                for metric, kept in zip(measures, groups.kept, strict=True)
            ]
    dataset = _dataset(snapshot, name, raw, [estimates, *of_metrics])
    dataset.attrs = {
        "estimator": name,
        "settings": json.dumps(settings(chosen)),
        "n_guesses": n_guesses,
        "seed": seed,
        "block_size": block_size,
        "n_examples": snapshot.n_examples,
        "autodiff": snapshot.autodiff,
        "device": str(snapshot.device.type),
        "dtype": str(snapshot.dtype).removeprefix("torch."),
        schema.NOT_LOOKED_AT: json.dumps(_not_looked_at(snapshot, probe)),
    }
    return schema.validate(schema.annotate(dataset))


def _not_looked_at(snapshot: Snapshot, guess: Estimates) -> tuple[str, ...]:
    """The trainable parameters for which there is no guess."""
    return snapshot.untapped_parameters if isinstance(guess, ActivationEstimates) else ()


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


def _blocks_in_flight(memory: int, kept: int, bytes_per_guess: int, block_size: int) -> int:
    """How many blocks, each with its sum, fit beside the bytes that are ``kept``."""
    block = bytes_per_guess * (block_size * WORKING_COPIES + 1)
    if memory < kept + block:
        needed = -(-(kept + block) // 2**20)
        enough = f"{needed} MiB ({needed << 20} bytes)"
        raise ValueError(f"memory must be at least {enough} for blocks of {block_size}, got {memory} bytes")
    return (memory - kept) // block


@contextmanager
def _calling_thread_single() -> Iterator[None]:
    """One torch thread in the calling thread too: it only adds up sums, and with more would fight the workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Raw:
    """What every estimate is made of, all layers together appended; shapes as in `quantities.quantities`."""

    inner_product: np.ndarray
    squared_norm: np.ndarray
    gram: np.ndarray
    group_of_guess: np.ndarray
    squared_gradient: np.ndarray

    @classmethod
    def of(cls, scalars: _Scalars, gram: np.ndarray, group_of_guess: np.ndarray, squared_gradient: np.ndarray) -> _Raw:
        parts = (scalars.inner_products, scalars.squared_norms, gram)
        inner, norms, whole = (np.concatenate([part, over_layers(part)[:, None]], axis=1) for part in parts)
        return cls(inner, norms, whole, group_of_guess, squared_gradient)

    def estimates(self, precision: float) -> dict[str, quantities.Estimate]:
        return quantities.quantities(
            self.inner_product, self.squared_norm, self.gram, self.group_of_guess, self.squared_gradient, precision
        )


def _dataset(
    snapshot: Snapshot, name: str, raw: _Raw, estimates: Sequence[Mapping[str, quantities.Estimate]]
) -> xr.Dataset:
    """``estimates``: of what every result has, and of each metric."""
    grid, known = (schema.SPACE, schema.LAYER), schema.variables()
    found, *of_metrics = (
        {
            variable: (known[variable].dims, part)
            for quantity, estimate in by_name.items()
            for variable, part in _named(quantity, estimate).items()
        }
        for by_name in estimates
    )
    levels = list(schema.COSINE_QUANTILES.values())
    cosines = quantities.cosine_quantiles(raw.inner_product, raw.squared_norm, raw.squared_gradient, levels)
    variables: dict[str, tuple] = found | {
        quantile: (grid, values) for quantile, values in zip(schema.COSINE_QUANTILES, cosines, strict=True)
    }
    variables["gradient_norm"] = (grid, np.sqrt(raw.squared_gradient))
    variables["inner_product"] = ((*grid, schema.GUESS), raw.inner_product)
    variables["squared_norm"] = ((*grid, schema.GUESS), raw.squared_norm)
    variables["gram"] = ((*grid, schema.GROUP, schema.OTHER_GROUP), raw.gram)
    variables["group_size"] = ((schema.GROUP,), np.bincount(raw.group_of_guess, minlength=raw.gram.shape[-1]))
    for more in of_metrics:
        variables |= more
    return xr.Dataset(variables, coords=coordinates(snapshot, name))


def _named(quantity: str, estimate: quantities.Estimate) -> dict[str, np.ndarray]:
    """The parts of an estimate by their names in a result; flags are 1 or 0, and NaN where there is no interval."""
    missing = np.isnan(estimate.low)
    parts = {"": estimate.value, schema.SE: estimate.se, schema.LOW: estimate.low, schema.HIGH: estimate.high}
    for suffix, flag in ((schema.WIDE, estimate.wide), (schema.SHORT, estimate.short)):
        parts[suffix] = np.where(missing, np.nan, flag)
    if quantity in schema.TAILED:
        parts[schema.TAIL] = np.broadcast_to(estimate.tail, missing.shape)
    return {quantity + suffix: part for suffix, part in parts.items()}
