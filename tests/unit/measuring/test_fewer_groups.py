"""Where the memory does not hold the sums of all groups of guesses there are fewer, and the result says so."""

from __future__ import annotations

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
from fganalysis.measuring import streamed
from fganalysis.measuring.group_ranges import FEWEST_GROUPS, even_groups, fitting_groups
from fganalysis.results import schema
from fganalysis.statistics.squared_norm import LEAST_GROUPS

INPUTS = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
SNAPSHOT = fga.capture(fga.networks.mlp([40, 128, 128, 10], seed=0), cross_entropy, INPUTS, torch.arange(64) % 10)
SHORT = 2**21  # Bytes. Sums of 64 groups take four times as many.
MESSAGE = "{} instead of 64, as the memory holds no more"


def sampled(memory: int, n_guesses: int = 256, **settings: Any) -> xr.Dataset:
    return fga.sample(SNAPSHOT, "activity", n_guesses, block_size=1, memory=memory, **settings)


def test_groups_are_fewer_before_memory_is_refused(tmp_path: Path) -> None:
    plenty, short = sampled(2**30), sampled(SHORT)
    assert plenty.sizes[schema.GROUP] == 64 and schema.FEWER_GROUPS not in plenty.attrs
    n_groups = short.sizes[schema.GROUP]
    assert FEWEST_GROUPS <= n_groups < 64 and short.attrs[schema.FEWER_GROUPS] == MESSAGE.format(n_groups)
    assert short["group_size"].sum() == 256 and np.ptp(short["group_size"].values) <= 1
    for name in ("inner_product", "squared_norm"):
        np.testing.assert_array_equal(short[name], plenty[name])
    assert np.isfinite(short["bias_high"].sel(space="activation")).all()
    assert (short["squared_bias_low"] <= plenty["squared_bias_high"]).sel(space="activation").all()
    tree = fga.diagnose(SNAPSHOT, "activity", 256, memory=2**30, subspace=False)
    assert schema.FEWER_GROUPS not in tree["measured"].attrs


def test_too_little_for_the_fewest_groups_is_refused_with_what_they_take() -> None:
    with pytest.raises(ValueError, match=r"memory must be at least 1 MiB \(1048576 bytes\)"):
        sampled(2**19)
    assert sampled(2**20).sizes[schema.GROUP] >= FEWEST_GROUPS


def test_longer_runs_and_parts_have_the_same_fewer_groups(tmp_path: Path) -> None:
    whole = sampled(SHORT)
    n_groups = whole.sizes[schema.GROUP]
    kept = [sampled(SHORT, n_guesses, keep_sums=tmp_path / "sums") for n_guesses in (n_groups * 4, n_groups * 12)]
    assert kept[1].identical(sampled(SHORT, n_groups * 12))
    settings = {"block_size": 1, "n_parts": 3}
    parts = [fga.sample_part(SNAPSHOT, "activity", 256, part=k, memory=SHORT, **settings) for k in range(3)]
    assert fga.merge_parts(SNAPSHOT, "activity", parts).identical(whole)
    parts[2] = fga.sample_part(SNAPSHOT, "activity", 256, part=2, **settings)
    with pytest.raises(ValueError, match=r"a part is of another sample \(other n_groups\)"):
        fga.merge_parts(SNAPSHOT, "activity", parts)


def test_streamed_guesses_have_fewer_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "STREAMED_FROM", 100)
    plenty, short = (fga.sample(SNAPSHOT, "weight", 64, memory=memory) for memory in (2**30, 2**26))
    n_groups = short.sizes[schema.GROUP]
    assert plenty.sizes[schema.GROUP] == 64 and schema.FEWER_GROUPS not in plenty.attrs
    assert FEWEST_GROUPS <= n_groups < 64 and short.attrs[schema.FEWER_GROUPS] == MESSAGE.format(n_groups)
    np.testing.assert_array_equal(short["inner_product"], plenty["inner_product"])


@given(st.integers(1, 5000), st.integers(FEWEST_GROUPS, 64), st.integers(-100, 10**6), st.integers(1, 10**4))
def test_as_many_groups_as_fit_and_no_other_number_where_all_do(n_blocks: int, most: int, room: int, each: int) -> None:
    n_groups, wanted = fitting_groups(n_blocks, most, room, each), even_groups(n_blocks, most)
    assert 1 <= n_groups <= wanted <= min(most, n_blocks)
    in_group = np.bincount(np.arange(n_blocks) % n_groups)
    assert np.ptp(in_group) <= 1
    if wanted * each <= room:
        assert n_groups == wanted
    else:
        assert n_groups * each <= room or n_groups <= FEWEST_GROUPS
    assert n_groups >= min(n_blocks, LEAST_GROUPS + 1)
