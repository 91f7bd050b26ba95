"""train_seeds(): the same training from several seeds, with one log of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from fganalysis.arguments import check_callable, check_choice, check_path, check_seed, described
from fganalysis.estimators import Estimator
from fganalysis.training.datasets import Dataset
from fganalysis.training.loop import Run, train

GIVEN_TO_TRAIN_SEEDS = ("network", "data", "gradient", "out", "seed")


def train_seeds(
    make_network: Callable[[int], torch.nn.Module],
    data: Dataset,
    gradient: str | Estimator = "backpropagation",
    *,
    seeds: Sequence[int],
    out: str | Path | None = None,
    **settings: Any,
) -> tuple[xr.Dataset, dict[int, Run]]:
    """Trains once for each seed, by `train` with the network ``make_network(seed)``.

    Args:
        out: folder of the checkpoints; those of a seed N go to its folder ``seed_N``.
        settings: other arguments of `train`, the same for all seeds.

    Returns:
        The logs over (seed, step), NaN where a run has no row, and the runs by seed.

    Raises:
        ValueError: seeds that are not a list of different seeds; a ``make_network`` that is not a function or fails; an
            unknown setting; and as `train`.
    """
    if isinstance(make_network, torch.nn.Module):
        raise ValueError("make_network must be a function from a seed to a network, got a network")
    check_callable("make_network", make_network, "a function from a seed to a network")
    if isinstance(seeds, str) or not isinstance(seeds, Sequence | np.ndarray) or not len(seeds):
        raise ValueError(f"seeds must be a list of whole numbers, at least one, got {described(seeds)}")
    for seed in seeds:
        check_seed("every one of the seeds", seed)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different from each other, got {described(list(seeds))}")
    known = signature(train).parameters
    for name in settings:
        check_choice("a setting of train", name, [name for name in known if name not in GIVEN_TO_TRAIN_SEEDS])
    if out is not None:
        check_path("out", out)
    runs = {}
    for seed in map(int, seeds):
        folder = Path(out) / f"seed_{seed}" if out is not None else None
        try:
            network = make_network(seed)
        except Exception as error:
            raise ValueError(f"make_network fails for the seed {seed}: call it to see why") from error
        runs[seed] = train(network, data, gradient, out=folder, seed=seed, **settings)
    logs = xr.concat([run.log for run in runs.values()], dim="seed", join="outer", combine_attrs="drop_conflicts")
    return logs.assign_coords(seed=list(runs)), runs
