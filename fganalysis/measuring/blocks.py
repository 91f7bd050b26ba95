"""Blocks of guesses: a random generator for each block, and worker threads that compute them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from fganalysis.capturing.reference import Reference
from fganalysis.estimators.protocol import Estimator
from fganalysis.estimators.stable_names import stable_name

Result = TypeVar("Result")

MOST_GROUPS = 64  # Of guesses; a power of two, as blocks are, so that a block begins with the first group.


@dataclass(frozen=True)
class Seeds:
    """Generators for blocks, from (seed, step, estimator, block) by `numpy.random.SeedSequence`.

    Attributes:
        seed: the caller's. step: the reference's. name: the estimator's `stable_name`. device: where noise is drawn.
    """

    seed: int
    step: int
    name: str
    device: torch.device

    @classmethod
    def of(cls, seed: int, reference: Reference, estimator: str | Estimator) -> Seeds:
        return cls(seed, reference.step, stable_name(estimator), reference.device)

    def named(self, more: str) -> Seeds:
        """Seeds of another kind of draw for the same estimator."""
        return replace(self, name=f"{self.name} {more}")

    def generator(self, *block: int) -> torch.Generator:
        """The generator of a block, given by its number, or by several such as look and number."""
        state = self._sequence(block).generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(state[0]) >> 1)

    def numbers(self, *block: int) -> np.random.Generator:
        """NumPy's generator of a block."""
        return np.random.Generator(np.random.PCG64(self._sequence(block)))

    def _sequence(self, block: tuple[int, ...]) -> np.random.SeedSequence:
        digest = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        return np.random.SeedSequence((self.seed, self.step, digest), spawn_key=block)


def one_torch_thread() -> None:
    """Limits torch to one thread in the calling thread; for workers, which would otherwise compete for the cores."""
    # The first query copies the process-wide number into the thread. After the setting it would undo it.
    torch.get_num_threads()
    torch.set_num_threads(1)


def in_order(run: Callable[[int], Result], n_blocks: int, workers: int, apart: int | None = None) -> Iterator[Result]:
    """``run(0)``, ``run(1)``, … in their order, by ``workers`` threads with one torch thread each.

    At most ``workers`` + 1 results wait at a time, so that memory does not grow with the number of blocks. With
    ``apart``, block i has ended before block i + ``apart`` starts.
    """
    if workers == 1:
        yield from map(run, range(n_blocks))
        return
    most_waiting = min(workers + 1, apart or n_blocks)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=one_torch_thread) as pool:
        waiting: list[Future[Result]] = []
        try:
            for index in range(n_blocks):
                waiting.append(pool.submit(run, index))
                if len(waiting) >= most_waiting:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)


@contextmanager
def calling_thread_single() -> Iterator[None]:
    """One torch thread in the calling thread too: it only adds up sums, and with more would fight the workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fitting(memory: int, kept: int, each: int, words: str = "") -> int:
    """How many blocks of ``each`` bytes fit beside the bytes that are ``kept``; words: of the block, for the refusal.

    Raises:
        ValueError: not a single one, with the memory that it takes.
    """
    if memory < kept + each:
        needed = -(-(kept + each) // 2**20)
        raise ValueError(f"memory must be at least {needed} MiB ({needed << 20} bytes){words}, got {memory} bytes")
    return (memory - kept) // each
