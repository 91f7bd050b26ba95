"""A sample in parts is the whole to the last bit, whoever computes which part, and in however many parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import parts_of_blocks, splitting, streamed
from fganalysis.measuring.group_ranges import GroupRange, even_groups
from fganalysis.results import store

N_GUESSES = 801  # The last of 201 blocks has one guess, and the last groups have a block less than the first.
BLOCK = 4


def snapshot_of(seed: int = 0, n_examples: int = 7) -> Snapshot:
    network = fga.networks.mlp([6, 8, 5], bias=True, seed=seed)
    inputs = torch.randn(n_examples, 6, generator=torch.Generator().manual_seed(0))
    return fga.capture(network, cross_entropy, inputs, torch.arange(n_examples) % 5)


SNAPSHOT = snapshot_of()


@cache
def whole(key: str = "activity", n_guesses: int = N_GUESSES) -> xr.Dataset:
    return fga.sample(SNAPSHOT, key, n_guesses, 3, block_size=BLOCK, workers=2)


def part(number: int, n_parts: int, key: str = "activity", n_guesses: int = N_GUESSES, **more: Any) -> xr.Dataset:
    settings = {"seed": 3, "block_size": BLOCK} | more
    return fga.sample_part(SNAPSHOT, key, n_guesses, part=number, n_parts=n_parts, **settings)


@pytest.mark.parametrize(
    ("key", "n_parts"), [("activity", 1), ("activity", 2), ("activity", 3), ("weight", 3), ("local_loss", 2)]
)
def test_parts_are_the_whole_with_any_workers_and_memory(key: str, n_parts: int) -> None:
    each = [
        part(number, n_parts, key, workers=(1, 3, None)[number], memory=2 ** (21 + 4 * number))
        for number in range(n_parts)
    ]
    assert fga.merge_parts(SNAPSHOT, key, reversed(each)).identical(whole(key))


def test_parts_travel_as_files_and_a_part_is_held_at_a_time(tmp_path: Path) -> None:
    for number in range(2):
        store.write(part(number, 2), tmp_path / f"{number}.nc")

    def read() -> Iterator[xr.Dataset]:
        for number in range(2):
            yield store.read(tmp_path / f"{number}.nc").to_dataset()

    assert fga.merge_parts(SNAPSHOT, "activity", read()).identical(whole())


@given(st.integers(1, 64), st.integers(1, 9), st.integers(2, 3000), st.data())
def test_every_guess_is_in_one_part(most: int, block_size: int, n_guesses: int, data: st.DataObject) -> None:
    n_groups = even_groups(-(-n_guesses // block_size), most)
    n_parts = data.draw(st.integers(1, n_groups))
    ranges = [GroupRange.part(number, n_parts, n_groups) for number in range(n_parts)]
    numbers = [groups.guesses(n_guesses, block_size) for groups in ranges]
    np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.arange(n_guesses))
    for groups, of_part in zip(ranges, numbers, strict=True):
        assert len(of_part) == groups.n_guesses(n_guesses, block_size)
        of_guess = of_part // block_size % n_groups
        assert of_guess.min() == groups.first and of_guess.max() == groups.stop - 1
        places = np.arange(len(of_part)) // block_size
        np.testing.assert_array_equal(of_part // block_size, [groups.block(int(place)) for place in places])


def test_a_part_with_kept_sums_is_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = 64 * BLOCK, 3 * 64 * BLOCK
    drawn, original = [], parts_of_blocks.guesses_of

    def counted(*arguments: Any) -> Any:
        drawn.append(arguments[2])
        return original(*arguments)

    monkeypatch.setattr(parts_of_blocks, "guesses_of", counted)
    for n_guesses, new in ((short, 64), (long, 128)):
        drawn.clear()
        each = [part(number, 3, n_guesses=n_guesses, keep_sums=tmp_path / f"sums_{number}") for number in range(3)]
        assert len(drawn) == new
        assert fga.merge_parts(SNAPSHOT, "activity", each).identical(whole(n_guesses=n_guesses))


def test_more_parts_than_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="n_parts must be at most the number of groups of these guesses, 51, got 52"):
        part(0, 52)
    with pytest.raises(splitting.TooManyParts, match="of these guesses, 2, got 3: use fewer parts or more guesses"):
        part(2, 3, n_guesses=2 * BLOCK)
    with pytest.raises(ValueError, match="part must be a whole number from 0 to 1, got 2"):
        part(2, 2)


def test_guesses_that_are_not_written_out_have_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "STREAMED_FROM", 10)
    with pytest.raises(ValueError, match="weight cannot be sampled in parts: its guesses are not written out whole"):
        part(0, 2, "weight", block_size=None)


PARTS = [part(number, 2) for number in range(2)]
WRONG = {
    "none": ([], "the first of parts must be what fga.sample_part returns"),
    "no datasets": (PARTS[0], "the first of parts must be what fga.sample_part returns, got"),
    "a whole sample": ([whole()], "a part must be what fga.sample_part returns, got a Dataset of"),
    "missing": (PARTS[1:], "of 2 parts there must be each, but these are missing: 0"),
    "twice": ([PARTS[0], PARTS[0]], "part 0 of 2 is given twice"),
    "another seed": ([PARTS[0], part(1, 2, seed=4)], r"a part is of another sample \(other seed\)"),
    "other parts": ([PARTS[0], part(1, 3)], r"a part is of another sample \(other n_parts\)"),
    "more guesses": ([PARTS[0], part(1, 2, n_guesses=4 * N_GUESSES)], r"\(other n_groups, n_guesses\)"),
    "another estimator": ([part(0, 2, "weight")], r"a part is of another sample \(other estimator, shapes\)"),
    "no sums": ([PARTS[0].drop_vars("sums.0.0")], "part 0 does not hold what fga.sample_part has returned"),
    "fewer guesses": ([PARTS[0].isel(guess=slice(3))], "part 0 does not hold what fga.sample_part has returned"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_are_not_the_parts_of_the_sample_is_refused(name: str) -> None:
    parts, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        fga.merge_parts(SNAPSHOT, "activity", parts)


def test_parts_of_another_snapshot_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a part is of another sample \(other weights\)"):
        fga.merge_parts(snapshot_of(seed=1), "activity", PARTS)
    with pytest.raises(ValueError, match=r"a part is of another sample \(other shapes\)"):
        fga.merge_parts(snapshot_of(n_examples=6), "activity", PARTS)
    other = fga.capture(SNAPSHOT.network, cross_entropy, SNAPSHOT.inputs * 1.1, SNAPSHOT.targets)
    with pytest.raises(ValueError, match="part 0 is of a snapshot with another gradient"):
        fga.merge_parts(other, "activity", PARTS)
