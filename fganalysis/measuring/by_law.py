"""sample(…, by_law=True): guesses at the weights drawn by their law, at a cost that does not grow with the network.

Which estimators have such a law is declared beside their formulas (`fganalysis.estimators.tangents_of_weights`). The
guesses' numbers and the Gram matrix of the means of their groups have exactly the joint law that those of direct
guesses have (docs/mathematics.md#weight-guesses-by-their-law); nothing else of a guess exists here.
"""

from __future__ import annotations

import os
from functools import partial

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.estimators.noise import is_isotropic
from fganalysis.estimators.tangents_of_weights import Tangents, tangents_of
from fganalysis.measuring.along_directions import Bar, Way
from fganalysis.measuring.blocks import MOST_GROUPS, Seeds, fitting, in_order
from fganalysis.measuring.drawn_lengths import (
    Exact,
    Sum,
    Vectors,
    gram_of_errors,
    guesses,
    numbers_held,
    numbers_per_guess,
)
from fganalysis.measuring.sampled_dataset import RawNumbers
from fganalysis.results import schema
from fganalysis.statistics.intervals import power_of_two
from fganalysis.statistics.rounding import DOUBLE

# A block has its own generator: another size gives other random numbers.
TRIPLES_PER_BLOCK = 2**14  # Fits the caches.
LARGEST_BLOCK = 2**12
GUESSES_PER_GROUP = 16  # At least, where there are several groups.
BYTES_PER_TRIPLE = 100  # Of a block in flight: its three numbers and temporaries, in double precision.
GRAM = 2**31  # The number of the generator of what is drawn once; blocks have smaller ones.

SMALL_EPSILON = "epsilon to 0 of central differences, which then are slopes"


def way_by_law(snapshot: Snapshot, estimator: Estimator) -> Way:
    """How guesses of an estimator are drawn by their law. Raises ValueError as `law_of` does."""
    law = law_of(estimator)
    sizes = np.array([layer.weight.numel() for layer in snapshot.weights])
    limit = {schema.LIMIT: SMALL_EPSILON} if law.slope == "central" else {}
    draw = partial(raw_numbers, law, sizes)
    return Way("by law", law, draw, block_size(law, len(sizes)), DOUBLE, {schema.BY_LAW: 1, **limit})


def law_of(estimator: Estimator) -> Tangents:
    """What the guesses of an estimator are made of, where their law is known.

    Raises:
        ValueError: for every other estimator, with its name and the reason.
    """
    law, name = tangents_of(estimator), label(estimator)
    if law is None:
        reason = "its guess is not declared to be made of slopes along shared random directions of the weights"
    elif not is_isotropic(law.noise):
        reason = f"its noise is {type(law.noise).__name__}, not Gaussian or Sphere"
    elif law.slope == "one-sided":
        reason = "its differences of losses are one-sided, not central"
    else:
        return law
    raise ValueError(f"{name} cannot be sampled by law, as {reason}: use by_law=False")


def raw_numbers(
    law: Tangents,
    sizes: np.ndarray,
    squared_gradient: np.ndarray,
    n_guesses: int,
    seeds: Seeds,
    *,
    memory: int = 2**30,
    workers: int | None = None,
    bar: Bar = lambda blocks, number: blocks,
) -> RawNumbers:
    """The numbers of guesses drawn by their law.

    Args:
        law: of a guess. sizes: weights of each layer, (layer,). squared_gradient: exact ‖G‖², (space, layer), "all"
            last. n_guesses, memory, workers: as in `fganalysis.sample`. seeds: of the blocks. bar: shows progress.

    Raises:
        ValueError: memory too small for the numbers of the guesses and a block.
    """
    weight, n_layers = schema.SPACES.index("weight"), len(sizes)
    norms = np.sqrt(squared_gradient[weight, :-1])
    unit = float(power_of_two(np.sqrt(squared_gradient[weight, -1])))
    exact = Exact(sizes, norms / unit)
    per_block = block_size(law, n_layers)
    n_blocks, n_groups = -(-n_guesses // per_block), groups_of(n_guesses)
    shape = (len(schema.SPACES), n_layers + 1)
    bytes_of_block = numbers_held(law, n_layers, per_block) * BYTES_PER_TRIPLE
    in_flight = fitting(memory, 2 * 8 * int(np.prod(shape)) * n_guesses, bytes_of_block)
    inner, squares = np.full((*shape, n_guesses), np.nan), np.full((*shape, n_guesses), np.nan)

    def run(index: int) -> Vectors:
        start = index * per_block
        # All of a block is drawn, so that a longer run begins with a shorter one.
        block = guesses(law, exact, per_block, seeds.numbers(index)).between(0, n_guesses - start)
        these = slice(start, start + per_block)
        of_layers = block.along * (exact.norms[:, None] * unit**2), block.squared_norms * unit**2
        for into, values in zip((inner, squares), of_layers, strict=True):
            into[weight, :-1, these] = values
            into[weight, -1, these] = values.sum(0)
        return block

    total = Sum(n_layers, n_groups)
    workers = min(workers or os.cpu_count() or 1, in_flight, n_blocks)
    for block in bar(in_order(run, n_blocks, workers), n_blocks):
        for start in range(0, block.along.shape[1], n_groups):
            total.add(block.between(start, start + n_groups))
    group_of_guess = np.arange(n_guesses) % n_groups
    gram = np.full((*shape, n_groups, n_groups), np.nan)
    counts = np.bincount(group_of_guess).astype(float)
    gram[weight, :-1] = gram_of_errors(total, counts, exact, seeds.numbers(GRAM)) * unit**2
    gram[weight, -1] = gram[weight, :-1].sum(0)
    return RawNumbers(inner, squares, gram, group_of_guess, squared_gradient, n_groups)


def block_size(law: Tangents, n_layers: int) -> int:
    """Guesses in a block, a power of two: as many as fit the caches."""
    fitting = TRIPLES_PER_BLOCK // numbers_per_guess(law, n_layers)
    return int(np.clip(1 << max(fitting, 1).bit_length() - 1, MOST_GROUPS, LARGEST_BLOCK))


def groups_of(n_guesses: int) -> int:
    """Groups that guesses are assigned to in turn, a power of two."""
    fitting = max(1, min(MOST_GROUPS, n_guesses // GUESSES_PER_GROUP))
    return 1 << fitting.bit_length() - 1
