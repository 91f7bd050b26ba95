"""How much of the weight gradient lies in the dominant directions of the Hessian and the Gauss–Newton matrix."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import curvature, subspace
from studies.subspaces.descent import projected_gradients

DIRECTIONS = ("hessian", "gauss_newton")


def curvature_shares(snapshot: Snapshot, k: int) -> xr.Dataset:
    """Where the weight gradient and its truncation to the Jacobians' leading k directions lie, over the curvature's.

    share: of the squared weight gradient in the k dominant eigenvectors. truncated_share: the same for the truncated
    gradient. kept: squared cosine of the truncated with the whole gradient.
    """
    whole = torch.cat([g.flatten() for g in snapshot.weight_gradients]).double().cpu().numpy()
    kept_parts = [*projected_gradients(snapshot, k), snapshot.weight_gradients[-1]]
    truncated = torch.cat([g.flatten() for g in kept_parts]).double().cpu().numpy()
    share, shorter, values = np.empty(2), np.empty(2), np.empty((2, k))
    products = (curvature.hessian_product(snapshot), curvature.gauss_newton_product(snapshot))
    for index, product in enumerate(products):
        pairs = curvature.dominant(product, snapshot, k, tolerance=1e-3)
        share[index] = float(subspace.overlap_curve(whole, pairs.vectors)[-1])
        shorter[index] = float(subspace.overlap_curve(truncated, pairs.vectors)[-1])
        values[index] = pairs.values
    kept = float((whole @ truncated) ** 2 / ((whole @ whole) * (truncated @ truncated)))
    random = subspace.random_overlap(k, len(whole))
    one = {"units": "1"}
    return xr.Dataset(
        {
            "share": ("directions", share, one | {"long_name": "share of the weight gradient in the dominant space"}),
            "truncated_share": ("directions", shorter, one | {"long_name": "the same for the truncated gradient"}),
            "eigenvalue": (
                ("directions", "mode"),
                values,
                {"units": "loss per squared unit of weight", "long_name": "dominant eigenvalues"},
            ),
            "kept": ((), kept, one | {"long_name": "squared cosine of the truncated with the whole weight gradient"}),
            "random_share": ((), float(random.mean), one | {"long_name": "share in a random space of that size"}),
        },
        coords={"directions": list(DIRECTIONS), "mode": np.arange(1, k + 1), "step": snapshot.step},
    )
