"""The mean orthogonal upstream guess beside the gradient: overlaps and cosines, from Jacobians and without sampling."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.results import schema


def beside(snapshot: Snapshot, k: int) -> xr.Dataset:
    """What is predicted of other guesses, and of the mean orthogonal guess Ḡ = Σ_b ḡ_b x_bᵀ of the weights' gradient G.

    weight_overlap: squared cosine of Ḡ and G. agreement: ‖Ḡ‖² over Σ_b ‖ḡ_b x_bᵀ‖², 1 for examples at right angles.
    """
    found = fga.predict(snapshot, "activity")[["efficiency"]].drop_vars(schema.ESTIMATOR)
    roots, sums = [], []
    for tap, gradient, right in zip(snapshot.taps, snapshot.gradients, [*leading(snapshot, k), None], strict=True):
        mean = gradient
        if right is not None:
            mean = torch.einsum("bum,bvm,bv->bu", right, right, gradient)
            kept = mean.norm(dim=1) / gradient.norm(dim=1)
            roots.append(float(kept[kept.isfinite()].mean()))
        guess, truth = (one.T.double() @ tap.inputs.double() for one in (mean, gradient))
        alone = (mean.double().square().sum(1) * tap.inputs.double().square().sum(1)).sum()
        sums.append([float(one) for one in ((guess * truth).sum(), guess.square().sum(), truth.square().sum(), alone)])
    inner, square, whole, alone_square = np.array([*sums, np.sum(sums, axis=0)]).T
    found["overlap_root"] = (schema.LAYER, [*roots, np.nan, np.nan])
    found["weight_overlap"] = (schema.LAYER, inner**2 / (square * whole))
    found["agreement"] = (schema.LAYER, square / alone_square)
    return found


def overlaps(snapshot: Snapshot, k: int) -> xr.Dataset:
    """o² at k of every hidden layer, example mean."""
    overlap = []
    for right, gradient in zip(leading(snapshot, k), snapshot.gradients, strict=False):
        kept = torch.einsum("bum,bu->bm", right, gradient).square().sum(1) / gradient.square().sum(1)
        overlap.append(float(kept[kept.isfinite()].mean()))
    return xr.Dataset({"overlap": (schema.LAYER, overlap)}, {schema.LAYER: list(snapshot.layers[:-1])})


def leading(snapshot: Snapshot, k: int) -> list[Tensor]:
    return [jacobian.singular_vectors(min(k, *jacobian.weight.shape))[2] for jacobian in snapshot.upstream]
