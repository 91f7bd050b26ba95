"""The cells of `studies.bias_variance`: a training, each estimator's diagnosis at one step of it, and the subspaces.

A diagnosis may be split: then the cells of the parts of its guesses come first, and it merges these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import label
from fganalysis.measuring.diagnose import diagnosis, name_of_sums
from fganalysis.measuring.joining import along, in_a_sentence, join
from fganalysis.measuring.splitting import TooManyParts
from fganalysis.results import schema, store
from fganalysis.training.checkpoints import load_checkpoint
from fganalysis.training.datasets import Dataset
from studies.kit import kept_data, kept_networks, resumed

TRAINING_BATCH = 512
WITHOUT_NOISE = "backpropagation"


def trained(dataset: str, width: int, seed: int, epochs: int, steps: tuple[int, ...], scratch: Path) -> xr.DataTree:
    """The log of one training by backpropagation, and under /step_NNNNNN the weights at the given steps."""
    data = kept_data.load(dataset)
    network = _network(data, width, seed)
    run = resumed.train(
        network,
        data,
        "backpropagation",
        scratch,
        epochs=epochs,
        batch_size=TRAINING_BATCH,
        checkpoints=steps,
        seed=seed,
    )
    nodes = {"/": run.log}
    for step in steps:
        load_checkpoint(run.checkpoints[step], network)
        nodes[node_of(step)] = kept_networks.as_dataset(network)
    return xr.DataTree.from_dict(nodes)


def node_of(step: int) -> str:
    """The node of a training's cell that has the weights at a step."""
    return f"step_{step:06d}"


def diagnosed(
    dataset: str,
    width: int,
    seed: int,
    step: int,
    estimator: str,
    guesses: int,
    batch: int,
    device: str,
    memory: int,
    network: Path,
    sums: Path | None,
    parts: Path | None,
    split: int,
) -> xr.DataTree:
    """/measured and /predicted of one estimator at one step; NaN with the reason where it cannot be measured.

    sums: a folder for sums over guesses, from which a cell of more guesses continues. parts: the folder of the cells of
    its guesses in parts, of which there are ``split``; without it they are drawn here.
    """
    snapshot = _snapshot(dataset, width, seed, step, batch, device, network)
    if parts is not None and (merged := _merged(snapshot, estimator, parts, split)) is not None:
        chosen = {label(estimator): fga.estimators.resolve(estimator)}
        return diagnosis([snapshot], chosen, lambda snapshot, chosen: merged, subspace=False)
    try:
        return fga.diagnose(snapshot, estimator, guesses, seed, memory=memory, subspace=False, keep_sums=sums)
    except ValueError:
        if estimator == WITHOUT_NOISE:
            raise
        # Beside one that is measured, the other's reason is kept.
        both = fga.diagnose(snapshot, [WITHOUT_NOISE, estimator], guesses, seed, memory=memory, subspace=False)
        return both.map_over_datasets(lambda part: part.isel({schema.ESTIMATOR: [1]}) if part.sizes else part)


def part_of_guesses(
    dataset: str,
    width: int,
    seed: int,
    step: int,
    estimator: str,
    guesses: int,
    batch: int,
    device: str,
    memory: int,
    part: int,
    split: int,
    network: Path,
    sums: Path | None,
) -> xr.Dataset:
    """What is kept of one part of an estimator's guesses at one step; nothing and the reason where that cannot be."""
    snapshot = _snapshot(dataset, width, seed, step, batch, device, network)
    file = None if sums is None else sums / f"{name_of_sums(snapshot, estimator)}.part_{part}_of_{split}"
    try:
        return fga.sample_part(
            snapshot, estimator, guesses, seed, part=part, n_parts=split, memory=memory, keep_sums=file
        )
    except TooManyParts:
        raise
    except ValueError as error:
        return xr.Dataset(attrs={schema.NOT_MEASURED: in_a_sentence(error)})


class _NotMeasured(Exception):
    """A part of which nothing is kept."""


def _merged(snapshot: Snapshot, estimator: str, parts: Path, split: int) -> xr.Dataset | None:
    """The sample whose parts have been computed; None where it cannot be drawn in parts."""

    def read() -> Iterator[xr.Dataset]:
        for number in range(split):
            part = store.read(parts / f"{name_of_part(number, split)}{store.SUFFIX}").to_dataset()
            if schema.NOT_MEASURED in part.attrs:
                raise _NotMeasured
            yield part

    try:
        return fga.merge_parts(snapshot, estimator, read())
    except _NotMeasured:
        return None


def name_of_part(number: int, split: int) -> str:
    """The cell of a part of the guesses, in the folder of these."""
    return f"part_{number}_of_{split}"


def subspaces(dataset: str, width: int, seed: int, step: int, batch: int, device: str, network: Path) -> xr.DataTree:
    """/subspace at one step; without it, the attribute with the reason."""
    snapshot = _snapshot(dataset, width, seed, step, batch, device, network)
    tree = fga.diagnose(snapshot, WITHOUT_NOISE, 2, seed, subspace=True)
    return tree.filter(lambda node: node.name not in ("measured", "predicted"))


def joined(steps: Sequence[Sequence[xr.DataTree]]) -> xr.DataTree:
    """One tree from the cells of every step: those of the estimators, and last that of the subspaces."""
    trees = []
    for *estimators, spaces in steps:
        nodes = {
            name: along(schema.ESTIMATOR, [tree[name].to_dataset() for tree in estimators])
            for name in ("measured", "predicted")
        }
        tree = xr.DataTree.from_dict(nodes | {name: node.to_dataset() for name, node in spaces.children.items()})
        tree.attrs = {name: value for name, value in spaces.attrs.items() if name == schema.NOT_MEASURED}
        trees.append(tree)
    return join(trees)


def _network(data: Dataset, width: int, seed: int) -> torch.nn.Module:
    inputs, classes = data.train_inputs.shape[1], int(data.train_targets.max()) + 1
    return fga.networks.mlp([inputs, width, width, width, classes], bias=False, seed=seed)


def _snapshot(dataset: str, width: int, seed: int, step: int, batch: int, device: str, network: Path) -> Snapshot:
    data = kept_data.load(dataset)
    there = kept_networks.restored(_network(data, width, seed), network, node_of(step)).to(device)
    examples = [array.to(device) for array in data.batch(batch)]
    return fga.capture(there, torch.nn.functional.cross_entropy, *examples, step=step)
