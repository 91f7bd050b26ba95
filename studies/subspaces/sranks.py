"""srank of features and weights over the steps of a training: does training lower it, as Kumar et al. (2020) find?

They measure features of value networks, and others the weights of language models. The features of a layer are its
inputs, of all examples looked at together.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import subspace

DELTA = 0.01  # As Kumar et al.
MATRICES = ("features", "weights")


def sranks(snapshots: list[Snapshot]) -> xr.Dataset:
    """srank of every layer's inputs (example, unit) and weights, beside that of random matrices of their shapes."""
    taps = snapshots[0].taps
    found = np.empty((len(MATRICES), len(snapshots), len(taps)))
    random = np.empty((len(MATRICES), len(taps)))
    for layer in range(len(taps)):
        for step, snapshot in enumerate(snapshots):
            tap = snapshot.taps[layer]
            for matrix, array in enumerate((tap.inputs, tap.weight)):
                found[matrix, step, layer] = int(subspace.srank(subspace.singular_values(array), DELTA))
                random[matrix, layer] = subspace.random_srank(array.shape[0], array.shape[1], DELTA)
    return xr.Dataset(
        {
            "srank": (
                ("matrix", "step", "layer"),
                found,
                {"units": "1", "long_name": "leading modes that hold 99% of the sum of singular values"},
            ),
            "random_srank": (
                ("matrix", "layer"),
                random,
                {"units": "1", "long_name": "the same of a random matrix of that shape"},
            ),
        },
        coords={
            "matrix": list(MATRICES),
            "step": [one.step for one in snapshots],
            "layer": list(snapshots[0].layers),
        },
    )
