"""The study of subspaces with tiny settings."""

from __future__ import annotations

import dataclasses

import xarray as xr

from studies.subspaces.__main__ import Settings

TINY = Settings(
    widths=(8, 12),
    epochs=(2, 1),
    seeds=(0, 1),
    k=3,
    ks=(1,),
    guesses=2048,
    sampled_width=8,
    batch=6,
    training_batch=500,
    descent_width=6,
    descent_steps=4,
    workers=1,
)


@dataclasses.dataclass(frozen=True)
class Finished:
    settings: Settings
    collected: xr.Dataset
    text: str
