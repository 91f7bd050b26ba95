"""A sample in parts, each computed by another process or machine, and merged: the numbers of the whole, bit for bit.

Guesses belong to groups, whose sums are kept, by their number alone (group_ranges.py). A part draws the guesses of some
groups; what it keeps of them is what the whole sample would keep. So it does not matter who computes which part, nor in
how many parts a sample is split.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fganalysis.arguments import check_kind, check_whole, listed
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.measuring.direct import DirectSample
from fganalysis.measuring.drawing import drawn
from fganalysis.measuring.group_ranges import GroupRange
from fganalysis.measuring.kept_sums import made_of
from fganalysis.measuring.sample import check_settings, way_of
from fganalysis.measuring.sound_guesses import check_arguments
from fganalysis.results import schema

PART, OF_SAMPLE = "part", "of_sample"  # Attributes of a part: its number, and what the sample is, in a line of JSON.
EXACT_SQUARES = "squared_gradient"
SAME_GRADIENT = 1e-3  # Exact gradients of two machines differ by rounding, relative to their squared norms.
STATED = ("n_guesses", "seed", "block_size", "n_groups", "n_parts")
WHAT_IT_IS = "what fga.sample_part returns"


class TooManyParts(ValueError):
    """More parts than there are groups of guesses."""


def sample_part(
    snapshot: Snapshot,
    estimator: str | Estimator,
    n_guesses: int = 4096,
    seed: int = 0,
    *,
    part: int,
    n_parts: int,
    block_size: int | None = None,
    memory: int = 2**30,
    workers: int | None = None,
    progress: bool = False,
    keep_sums: str | Path | None = None,
) -> xr.Dataset:
    """What `fganalysis.sample` keeps of the guesses of one part of it, for `merge_parts`.

    Args:
        part, n_parts: from 0, and how many there are; at most one for each group of guesses, of which there are up to
            64. The other arguments are those of `sample`, of the whole sample and not of the part.

    Returns:
        Dataset of ⟨ĝ, g⟩ and ‖ĝ‖² of every guess, (space, layer, guess), and sums over the guesses of each group.

    Raises:
        ValueError: more parts than groups; guesses that are not written out whole; and what `sample` refuses.
    """
    check_arguments(snapshot, seed)
    check_settings(n_guesses, seed, memory, progress, block_size, workers, keep_sums)
    check_whole("n_parts", n_parts)
    check_whole("part", part, 0, n_parts - 1)
    chosen = resolve(estimator)
    with torch.no_grad(), full_precision(snapshot):
        if way_of(chosen, snapshot, by_law=False, block_size=block_size) is not None:
            raise ValueError(
                f"{label(chosen)} cannot be sampled in parts: its guesses are not written out whole on so large a "
                "network, so use fga.sample"
            )
        sample = DirectSample.of(snapshot, chosen, n_guesses, seed, block_size, memory)
        if n_parts > sample.n_groups:
            raise TooManyParts(
                f"n_parts must be at most the number of groups of these guesses, {sample.n_groups}, got {n_parts}: use "
                "fewer parts or more guesses"
            )
        groups = GroupRange.part(part, n_parts, sample.n_groups)
        kept = drawn(sample, groups, workers=workers, progress=progress, keep_sums=keep_sums)
    variables: dict[str, Any] = {name: (_dims(name, tensor), tensor.numpy()) for name, tensor in kept.tensors().items()}
    variables[EXACT_SQUARES] = ((schema.SPACE, schema.LAYER), sample.squared_gradient[:, :-1])
    coordinates = {schema.SPACE: list(schema.SPACES), schema.LAYER: list(snapshot.layers)}
    attributes = {"estimator": label(chosen), PART: part, OF_SAMPLE: _of_sample(sample, n_parts)}
    return xr.Dataset(variables, coordinates, attributes)


def merge_parts(snapshot: Snapshot, estimator: str | Estimator, parts: Iterable[xr.Dataset]) -> xr.Dataset:
    """The Dataset that `fganalysis.sample` returns, from all parts of it: the same numbers to the last bit.

    Args:
        snapshot, estimator: those of the parts. parts: what `sample_part` has returned for each, in any order; where it
            is an iterator, a part is held at a time.

    Raises:
        ValueError: no parts, one that is missing or given twice, or parts of another sample than the first, or of
            another snapshot or estimator.
    """
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_kind("parts", parts, Iterable, f"a list of {WHAT_IT_IS}")
    chosen = resolve(estimator)
    with torch.no_grad(), full_precision(snapshot):
        waiting = iter(parts)
        first = next(waiting, None)
        check_kind("the first of parts", first, xr.Dataset, WHAT_IT_IS)
        assert first is not None
        sample, n_parts = _sample_of(first, snapshot, chosen)
        whole, kept, done = _of_sample(sample, n_parts), sample.nothing_kept(sample.all_groups), set[int]()
        for given in chain([first], waiting):
            number = _number(given, n_parts, whole)
            if number in done:
                raise ValueError(f"part {number} of {n_parts} is given twice: give each part once")
            done.add(number)
            groups = GroupRange.part(number, n_parts, sample.n_groups)
            guesses = torch.from_numpy(groups.guesses(sample.n_guesses, sample.block_size))
            tensors = _tensors(given, number, kept.shapes(len(groups), len(guesses)), sample.squared_gradient)
            kept.take(tensors, slice(groups.first, groups.stop), guesses)
        if len(done) < n_parts:
            missing = [str(number) for number in range(n_parts) if number not in done]
            raise ValueError(f"of {n_parts} parts there must be each, but these are missing: {listed(missing)}")
        return sample.dataset(kept)


def _dims(name: str, tensor: Tensor) -> tuple[str, ...]:
    if name in ("inner_products", "squared_norms"):
        return (schema.SPACE, schema.LAYER, schema.GUESS)
    return (schema.GROUP, *(f"{name} {axis}" for axis in range(1, tensor.ndim)))


def _of_sample(sample: DirectSample, n_parts: int) -> str:
    """What all parts of a sample have in common."""
    weights = hashlib.sha256()
    for layer in sample.snapshot.weights:
        weights.update(layer.weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    whole = {
        "n_guesses": sample.n_guesses,
        "n_groups": sample.n_groups,
        "n_parts": n_parts,
        "device": sample.snapshot.device.type,
        "weights": weights.hexdigest(),
    }
    return json.dumps(made_of(sample) | whole, sort_keys=True)


def _sample_of(part: xr.Dataset, snapshot: Snapshot, estimator: Estimator) -> tuple[DirectSample, int]:
    """The sample that a part is one of, as far as the part says it; and its number of parts."""
    stated = _stated(part)
    for name in STATED:
        check_whole(f"{name} of a part", stated.get(name), 0 if name == "seed" else 1)
    n_guesses, seed, block_size, n_groups, n_parts = (stated[name] for name in STATED)
    sample = DirectSample.of(snapshot, estimator, n_guesses, seed, block_size, sys.maxsize)
    check_whole("n_groups of a part", n_groups, 1, sample.most_groups)
    check_whole("n_parts of a part", n_parts, 1, n_groups)
    return replace(sample, n_groups=n_groups), n_parts


def _stated(part: xr.Dataset) -> dict[str, Any]:
    """What a part says of its sample."""
    try:
        stated = json.loads(str(part.attrs.get(OF_SAMPLE)))
    except ValueError:
        stated = None
    if not isinstance(stated, dict):
        held = listed(map(str, part), 4) or "nothing"
        raise ValueError(f"a part must be {WHAT_IT_IS}, got a Dataset of {held} without the attribute {OF_SAMPLE}")
    return stated


def _number(part: object, n_parts: int, whole: str) -> int:
    """The number of a part. Raises ValueError for what is no part of the whole."""
    check_kind("a part", part, xr.Dataset, WHAT_IT_IS)
    assert isinstance(part, xr.Dataset)
    theirs, ours = _stated(part), json.loads(whole)
    if theirs != ours:
        differing = listed(name for name in ours if theirs.get(name) != ours[name])
        raise ValueError(
            f"a part is of another sample (other {differing}): give the parts of one, its snapshot and estimator"
        )
    number = part.attrs.get(PART)
    check_whole("the number of a part", number, 0, n_parts - 1)
    return int(str(number))


def _tensors(
    part: xr.Dataset, number: int, shapes: Mapping[str, tuple[int, ...]], squares: np.ndarray
) -> dict[str, Tensor]:
    """What a part holds, of these shapes. squares: exact ‖g‖², (space, layer), "all" last."""
    expected = {**shapes, EXACT_SQUARES: squares[:, :-1].shape}
    if any(
        name not in part or part[name].shape != shape or part[name].dtype.kind not in "fi"
        for name, shape in expected.items()
    ):
        raise ValueError(f"part {number} does not hold what fga.sample_part has returned: compute it again")
    if not np.allclose(part[EXACT_SQUARES], squares[:, :-1], rtol=SAME_GRADIENT, atol=0, equal_nan=True):
        raise ValueError(f"part {number} is of a snapshot with another gradient: give the snapshot of the parts")
    return {name: torch.from_numpy(np.array(part[name].values)) for name in shapes}
