"""sample(): many guesses of one estimator on one snapshot, in seeded blocks, as one Dataset.

Guesses come in blocks of a fixed size, each with its own generator seeded from (seed, step, estimator, block). So the
numbers depend on neither memory, number of workers nor order, and a longer run begins with the shorter one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from fganalysis import moments, schema
from fganalysis.estimates import Estimates, Sums
from fganalysis.estimators import Estimator, label, resolve, settings
from fganalysis.seeded_blocks import Seeds, one_torch_thread
from fganalysis.snapshot import Snapshot
from fganalysis.sound_guesses import check_arguments, first_guess, guesses_of

NUMBERS_PER_BLOCK = 2**20  # A block that fits the caches: larger ones spend their time on page faults.
MOST_GUESSES_PER_BLOCK = 16
MOST_GROUPS = 64
BYTES_OF_GROUPS = 2**29
WORKING_COPIES = 4  # Noise, direction, its image in weight space, one temporary.


@dataclass(frozen=True)
class _Block:
    """What one block leaves behind: scalars (space, layer, guess) and sums over its guesses."""

    size: int
    inner_products: np.ndarray
    squared_norms: np.ndarray
    total: Sums
    square_total: Sums


class _Groups:
    """Running sums of guesses in a fixed number of disjoint groups; block i belongs to group i modulo that number."""

    def __init__(self, n_groups: int):
        self.sizes = np.zeros(n_groups, dtype=np.int64)
        self.totals: list[Sums] = [()] * n_groups
        self.square_totals: list[Sums] = [()] * n_groups

    def add(self, group: int, block: _Block) -> None:
        self.sizes[group] += block.size
        self.totals[group] = _plus(self.totals[group], block.total)
        self.square_totals[group] = _plus(self.square_totals[group], block.square_total)

    def means(self) -> list[Sums]:
        """The mean of every group; the sums are turned into it in place, so nothing can be added after."""
        return [tuple(t.div_(int(n)) for t in total) for total, n in zip(self.totals, self.sizes, strict=True)]


def _plus(left: Sums, right: Sums) -> Sums:
    return tuple(a.add_(b) for a, b in zip(left, right, strict=True)) if left else right


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
        memory: bytes of working space; bounds how many blocks are in flight, not the numbers.
        workers: threads on the CPU; default the number of cores (one on a GPU or in
            forward mode).
        progress: shows a bar on the terminal.

    Returns:
        Dataset over (space, layer), the layers being the taps' names and "all"; with the raw scalars per guess and the
        Gram matrix of group means, from which everything else was derived.

    Raises:
        ValueError: n_guesses below 2, an unknown estimator, memory too small for one block, a seed below 0, no
            snapshot, guesses that are not as many as asked for or of another shape or data type than the gradient.
    """
    check_arguments(snapshot, seed)
    if n_guesses < 2:
        raise ValueError(f"n_guesses must be at least 2, got {n_guesses}")
    chosen, name = resolve(estimator), label(estimator)
    with torch.no_grad():
        seeds = Seeds.of(seed, snapshot, name)
        # The first call makes what is made once per snapshot, on the main thread, and tells the size of a guess.
        probe = first_guess(chosen, snapshot, seeds.generator(2**31))
        probe.inner_products(snapshot)
        numbers = probe.numbers_per_guess()
        block_size = block_size or default_block_size(numbers)
        n_blocks = -(-n_guesses // block_size)
        bytes_per_number = snapshot.outputs.element_size()
        most_groups = int(np.clip(BYTES_OF_GROUPS // (numbers * bytes_per_number), 8, MOST_GROUPS))
        # As many as leave all groups with the same number of blocks, or one less: intervals take them for equal.
        n_groups = -(-n_blocks // -(-n_blocks // most_groups))
        in_flight = _blocks_in_flight(memory, numbers * bytes_per_number, block_size, n_groups)
        # Forward mode hooks into the one network, and torch's dual levels are shared by threads: one worker.
        alone = snapshot.outputs.is_cuda or snapshot.autodiff == "forward"
        workers = 1 if alone else min(workers or os.cpu_count() or 1, in_flight)

        def run(index: int) -> _Block:
            with torch.no_grad():
                guesses = guesses_of(chosen, snapshot, block_size, seeds.generator(index))
                return _reduce(guesses.first(min(block_size, n_guesses - index * block_size)), snapshot)

        groups, scalars = _Groups(n_groups), []
        blocks = _in_order(run, n_blocks, workers)
        with _calling_thread_single() if workers > 1 else nullcontext():
            for index, block in enumerate(tqdm(blocks, name, n_blocks, disable=not progress)):
                groups.add(index % n_groups, block)
                scalars.append((block.inner_products, block.squared_norms))
            means = groups.means()
            gram = probe.error_grams(snapshot, means).double().cpu().numpy()
            wang2025 = _wang2025(snapshot, groups, means)
    inner = np.concatenate([first for first, _ in scalars], axis=-1)
    norms = np.concatenate([second for _, second in scalars], axis=-1)
    group_of_guess = (np.arange(n_guesses) // block_size) % n_groups
    dataset = _dataset(snapshot, name, inner, norms, gram, group_of_guess)
    dataset = _with_tails(dataset.merge(wang2025))
    dataset.attrs = {
        "estimator": name,
        "settings": json.dumps(settings(chosen)),
        "n_guesses": n_guesses,
        "seed": seed,
        "block_size": block_size,
        "n_examples": snapshot.n_examples,
        "autodiff": snapshot.autodiff,
        "device": str(snapshot.outputs.device.type),
        "dtype": str(snapshot.outputs.dtype).removeprefix("torch."),
    }
    return schema.validate(schema.annotate(dataset))


def default_block_size(numbers_per_guess: int) -> int:
    """The largest power of two of guesses that fits `NUMBERS_PER_BLOCK`, between 1 and `MOST_GUESSES_PER_BLOCK`."""
    fitting = max(1, NUMBERS_PER_BLOCK // numbers_per_guess)
    return min(MOST_GUESSES_PER_BLOCK, 1 << (fitting.bit_length() - 1))


def _blocks_in_flight(memory: int, bytes_per_guess: int, block_size: int, n_groups: int) -> int:
    block = bytes_per_guess * block_size * WORKING_COPIES
    left = memory - n_groups * bytes_per_guess
    if left < block:
        needed = (n_groups * bytes_per_guess + block) / 2**20
        raise ValueError(f"memory must be at least {needed:.0f} MiB for blocks of {block_size}, got {memory >> 20} MiB")
    return left // block


def _reduce(guesses: Estimates, snapshot: Snapshot) -> _Block:
    inner, norms = guesses.inner_products(snapshot)
    return _Block(
        len(guesses),
        inner.double().cpu().numpy(),
        norms.double().cpu().numpy(),
        guesses.total(),
        guesses.square_total(),
    )


def _in_order(run: Callable[[int], _Block], n_blocks: int, workers: int) -> Iterator[_Block]:
    """Blocks in their order, computed by ``workers`` threads with one torch thread each."""
    if workers == 1:
        yield from map(run, range(n_blocks))
        return
    with ThreadPoolExecutor(workers, initializer=one_torch_thread) as pool:
        waiting: list[Future[_Block]] = []
        try:
            for index in range(n_blocks):
                waiting.append(pool.submit(run, index))
                if len(waiting) > workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _calling_thread_single() -> Iterator[None]:
    """One torch thread in the calling thread too: it only adds up sums, and with more would fight the workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _dataset(
    snapshot: Snapshot,
    name: str,
    inner: np.ndarray,
    norms: np.ndarray,
    gram: np.ndarray,
    group_of_guess: np.ndarray,
) -> xr.Dataset:
    inner, norms, gram = (np.concatenate([a, a.sum(1, keepdims=True)], axis=1) for a in (inner, norms, gram))
    squared_gradient = squared_gradients(snapshot)
    precision = float(torch.finfo(snapshot.outputs.dtype).eps)
    estimates = moments.quantities(inner, norms, gram, group_of_guess, squared_gradient, precision)
    grid = (schema.SPACE, schema.LAYER)
    variables: dict[str, tuple] = {}
    for quantity, estimate in estimates.items():
        variables |= {name: (grid, part) for name, part in _named(quantity, estimate).items()}
    levels = list(schema.COSINE_QUANTILES.values())
    for quantile, values in zip(
        schema.COSINE_QUANTILES, moments.cosine_quantiles(inner, norms, squared_gradient, levels), strict=True
    ):
        variables[quantile] = (grid, values)
    variables["gradient_norm"] = (grid, np.sqrt(squared_gradient))
    variables["inner_product"] = ((*grid, schema.GUESS), inner)
    variables["squared_norm"] = ((*grid, schema.GUESS), norms)
    variables["gram"] = ((*grid, schema.GROUP, schema.OTHER_GROUP), gram)
    variables["group_size"] = ((schema.GROUP,), np.bincount(group_of_guess, minlength=gram.shape[-1]))
    return xr.Dataset(variables, coords=coordinates(snapshot, name))


def _named(quantity: str, estimate: moments.Estimate) -> dict[str, np.ndarray]:
    """The parts of an estimate by their names in a result; flags are 1 or 0, and NaN where there is no interval."""
    missing = np.isnan(estimate.low)
    parts = {"": estimate.value, schema.SE: estimate.se, schema.LOW: estimate.low, schema.HIGH: estimate.high}
    for suffix, flag in ((schema.WIDE, estimate.wide), (schema.SHORT, estimate.short)):
        parts[suffix] = np.where(missing, np.nan, flag)
    if quantity in schema.TAILED:
        parts[schema.TAIL] = np.broadcast_to(estimate.tail, missing.shape)
    return {quantity + suffix: part for suffix, part in parts.items()}


def _with_tails(dataset: xr.Dataset) -> xr.Dataset:
    """With what the guesses' errors say of the tails of the seed paper's two, of which only groups are kept."""
    for name, alike in (("wang2025_bias", "bias"), ("wang2025_variance", "mse")):
        short = dataset[alike + schema.SHORT].sel({schema.SPACE: "activation"}, drop=True)
        dataset[name + schema.SHORT] = short.where(dataset[name + schema.LOW].notnull())
    return dataset


def coordinates(snapshot: Snapshot, name: str) -> dict[str, object]:
    """The coordinates that every result on a snapshot has."""
    return {
        schema.STEP: snapshot.step,
        schema.ESTIMATOR: name,
        schema.SPACE: list(schema.SPACES),
        schema.LAYER: [*snapshot.layers, schema.ALL_LAYERS],
    }


def squared_gradients(snapshot: Snapshot) -> np.ndarray:
    """Exact ‖g‖² and ‖G‖², (space, layer), layer "all" last."""

    def squares(tensors: Iterable[torch.Tensor]) -> list[float]:
        return [float(t.double().square().sum()) for t in tensors]

    by_space = np.array([squares(snapshot.gradients), squares(snapshot.weight_gradients)])
    return np.concatenate([by_space, by_space.sum(1, keepdims=True)], axis=1)


def _wang2025(snapshot: Snapshot, groups: _Groups, group_means: list[Sums]) -> xr.Dataset:
    """The seed paper's bias and variance per tap (MATH.md §4), from the group sums; NaN without activation guesses."""
    layers = [*snapshot.layers, schema.ALL_LAYERS]
    found: dict[str, np.ndarray] = {}
    for name in ("wang2025_bias", "wang2025_variance"):
        found |= _named(name, moments.Estimate.missing((len(layers),)))
    if groups.square_totals[0]:
        sizes = groups.sizes.astype(float)
        for index, gradient in enumerate(snapshot.gradients):
            means = torch.stack([mean[index].mean(0) for mean in group_means])
            cross = torch.stack([(mean[index] * gradient).sum(0) for mean in group_means])
            errors = (means - gradient.mean(0)).double().cpu().numpy()
            squares = torch.stack(
                [total[index] / int(n) for total, n in zip(groups.square_totals, groups.sizes, strict=True)]
            )
            second = (squares - 2 * cross + gradient.square().sum(0)).double().cpu().numpy() / snapshot.n_examples
            norm = float(gradient.double().square().sum(1).mean().sqrt())
            precision = float(torch.finfo(gradient.dtype).eps)
            for name, estimate in moments.wang2025(second, errors, sizes, norm, precision).items():
                for part, values in _named(name, estimate).items():
                    found[part][index] = values
    return xr.Dataset({name: (schema.LAYER, values) for name, values in found.items()})
