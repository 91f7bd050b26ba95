"""Singular values and stable ranks of the weight matrices, step by step."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import subspace


def weight_spectra(snapshots: list[Snapshot]) -> xr.Dataset:
    """Singular values of every weight matrix; does training with an upstream guess sharpen them?"""
    spectra = [[subspace.singular_values(tap.weight).cpu().numpy() for tap in one.taps] for one in snapshots]
    longest = max(len(values) for values in spectra[0])
    padded = np.array([[np.pad(v, (0, longest - len(v)), constant_values=np.nan) for v in row] for row in spectra])
    ranks = np.array([[float(subspace.stable_rank(values)) for values in row] for row in spectra])
    return xr.Dataset(
        {
            "singular_value": (("step", "layer", "mode"), padded, {"units": "1", "long_name": "of a weight matrix"}),
            "stable_rank": (("step", "layer"), ranks, {"units": "1", "long_name": "stable rank of a weight matrix"}),
        },
        coords={
            "step": [one.step for one in snapshots],
            "layer": list(snapshots[0].layers),
            "mode": np.arange(1, longest + 1),
        },
    )
