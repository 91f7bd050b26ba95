"""What `studies.bias_variance` computes: one network trained, frozen at several steps and diagnosed at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr

import fganalysis as fga
from fganalysis.measuring.joining import join
from fganalysis.training.checkpoints import load_checkpoint
from fganalysis.training.datasets import Dataset
from studies.kit import kept_cells

TRAINING_BATCH = 512


@dataclass(frozen=True)
class Plan:
    """What is trained and diagnosed; ``steps`` none for the first, the middle and the last."""

    epochs: int
    steps: tuple[int, ...]
    estimators: tuple[str, ...]
    guesses: int
    batch: int
    device: str
    memory: int


def diagnosed(
    plan: Plan, chosen: Mapping[str, object], data: Dataset, width: int, seed: int, folder: Path
) -> tuple[xr.DataTree, xr.Dataset]:
    """The diagnosis of one network at every step, and its training log; a file a step, and one for the log.

    It is trained only where something is not finished with the settings ``chosen``.
    """
    batch = [array.to(plan.device) for array in data.batch(plan.batch)]
    inputs, classes = data.train_inputs.shape[1], int(data.train_targets.max()) + 1
    network = fga.networks.mlp([inputs, width, width, width, classes], bias=False, seed=seed)
    last = plan.epochs * -(-len(data.train_inputs) // TRAINING_BATCH)
    paths = {step: folder / f"step_{step:06d}.nc" for step in plan.steps or (0, last // 2, last)}
    finished = {step: tree for step, path in paths.items() if (tree := kept_cells.finished(path, chosen)) is not None}
    for step in finished:
        print(f"step {step} is finished: {paths[step]}")
    log = kept_cells.finished(folder / "training_log.nc", chosen)
    if log is not None and len(finished) == len(paths):
        return join([finished[step] for step in paths]), log.to_dataset()
    run = fga.train(
        network,
        data,
        epochs=plan.epochs,
        batch_size=TRAINING_BATCH,
        checkpoints=list(paths),
        out=folder / "checkpoints",
        seed=seed,
        progress=True,
    )
    kept_cells.write(run.log, folder / "training_log.nc", chosen)
    for step, path in paths.items():
        if step not in finished:
            load_checkpoint(run.checkpoints[step], network)
            finished[step] = _cell(plan, network, batch, step, seed)
            kept_cells.write(finished[step], path, chosen)
    return join([finished[step] for step in paths]), run.log


def _cell(plan: Plan, network: torch.nn.Module, batch: list[torch.Tensor], step: int, seed: int) -> xr.DataTree:
    """The diagnosis of one step."""
    snapshot = fga.capture(network.to(plan.device), torch.nn.functional.cross_entropy, *batch, step=step)
    network.to("cpu")
    return fga.diagnose(snapshot, plan.estimators, plan.guesses, seed, memory=plan.memory, subspace=True, progress=True)
