"""All trainings of `studies.wang2025` as one DataTree, and what is read from it."""

from __future__ import annotations

import itertools

import numpy as np
import xarray as xr

from studies.kit.seeds import Interval, over_seeds
from studies.wang2025.cells import ITERATIONS, METRIC_GUESSES, Training

JACOBIAN = ("jacobian_rank", "overlap", "squared_overlap")


def collect(cells: dict[Training, xr.Dataset]) -> xr.DataTree:
    """All cells over (trained_by, width, seed): /training over step, /jacobian before and after, /metrics after."""
    if not cells:
        raise SystemExit("error: no training is finished yet")
    groups: dict[str, list[xr.Dataset]] = {"training": [], "jacobian": [], "metrics": []}
    for one, dataset in cells.items():
        placed = dataset.expand_dims(trained_by=[one.method], width=[one.width], seed=[one.seed])
        groups["training"].append(placed[["loss", "train_accuracy", "test_accuracy", "cosine"]])
        groups["jacobian"].append(placed[list(JACOBIAN)])
        if "variance" in placed:
            names = ("variance", "variance_se", "bias", "bias_se", "covariance_norm")
            groups["metrics"].append(placed[[name for name in names if name in placed]])
    epochs = next(iter(cells)).epochs
    nodes = {
        name: xr.merge(parts, join="outer", compat="no_conflicts", combine_attrs="drop")
        for name, parts in groups.items()
        if parts
    }
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = {"epochs": epochs, "subspace_iterations": ITERATIONS, "metric_guesses": METRIC_GUESSES}
    return tree


def cells(tree: xr.DataTree) -> dict[Training, xr.Dataset]:
    """What was collected, training by training."""
    found = {}
    nodes = {name: tree[name].to_dataset() for name in tree.children}
    training = nodes["training"]
    for method, width, seed in itertools.product(*(training[name].values for name in ("trained_by", "width", "seed"))):
        where = {"trained_by": method, "width": width, "seed": seed}
        if np.isfinite(training["loss"].sel(where).isel(step=0)):
            parts = []
            for node in nodes.values():
                if all(value in node[name].values for name, value in where.items()):
                    own = node.sel(where).drop_vars(list(where))
                    parts.append(own.dropna("guess_kind", how="all") if "guess_kind" in own.dims else own)
            one = Training(str(method), int(width), int(seed), int(tree.attrs["epochs"]))
            found[one] = xr.merge([part for part in parts if 0 not in part.sizes.values()])
    return found


def final(tree: xr.DataTree, method: str, width: int, name: str = "train_accuracy") -> xr.DataArray:
    """One number a seed, after the last step; empty where no such cell is finished."""
    training = tree["training"].to_dataset()
    if method not in training["trained_by"].values or width not in training["width"].values:
        return xr.DataArray(np.empty(0), dims="seed", coords={"seed": np.empty(0, dtype=int)})
    return training[name].sel(trained_by=method, width=width).isel(step=-1).dropna("seed")


def difference(tree: xr.DataTree, better: str, worse: str, width: int) -> Interval:
    """Training accuracy of one method less another's, over the seeds that both have: same weights, same batches."""
    one, other = xr.align(final(tree, better, width), final(tree, worse, width), join="inner")
    return over_seeds((one - other).values)
