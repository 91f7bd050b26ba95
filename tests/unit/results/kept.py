"""Results to keep on disk."""

from __future__ import annotations

import xarray as xr

import fganalysis as fga
from tests.laws import tiny_snapshot


def measured() -> xr.Dataset:
    return fga.sample(tiny_snapshot((3, 4, 2)), "activity", n_guesses=32)


def of_strings() -> xr.Dataset:
    return xr.Dataset(
        {"value": ("kind", [1.0, 2.0])}, {"kind": ["upstream", "W̃⊥"]}, {"seed": 3, "note": "a", "ks": [1, 2]}
    )
