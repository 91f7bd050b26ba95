"""A block's generator depends on seed, step, estimator and block alone, and its thread computes alone."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from fganalysis.measuring.blocks import Seeds, in_order, one_torch_thread
from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot()
CPU = torch.device("cpu")


def test_every_block_has_a_stream_of_its_own_that_can_be_had_again() -> None:
    def first(seeds: Seeds, *block: int) -> float:
        return float(torch.rand((), generator=seeds.generator(*block), dtype=torch.float64))

    seeds = Seeds.of(1, SNAPSHOT, "activity")
    assert seeds == Seeds(1, 0, "activity", CPU)
    others = [Seeds(2, 0, "activity", CPU), Seeds(1, 1, "activity", CPU), Seeds(1, 0, "weight", CPU)]
    drawn = [first(seeds, 0), first(seeds, 1), first(seeds, 0, 1), first(seeds, 1, 0), *(first(o, 0) for o in others)]
    assert len(set(drawn)) == len(drawn)
    assert first(seeds, 0) == drawn[0]


def test_one_thread_is_set_in_the_calling_thread_alone() -> None:
    before, found = torch.get_num_threads(), []

    def work() -> None:
        one_torch_thread()
        found.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        assert (found, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("apart", [1, 2, 3])
def test_blocks_that_share_a_sum_never_run_at_the_same_time(apart: int) -> None:
    running: set[int] = set()
    met: list[tuple[int, int]] = []

    def run(index: int) -> int:
        met.extend((index, other) for other in running if (index - other) % apart == 0)
        running.add(index)
        time.sleep(0.002)
        running.remove(index)
        return index

    assert list(in_order(run, 24, 4, apart)) == list(range(24))
    assert not met
