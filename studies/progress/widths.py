"""One cell of `studies.progress`: the effective rank of the curvature of an MLP of one width, over its training.

    r = tr H ‖g‖²/gᵀHg     H the Gauss–Newton matrix, which has no negative curvature

The curved efficiency of weight perturbation is 1/(2 + r), whatever the number of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

import fganalysis as fga
from fganalysis.measuring.network_curvature import of_network
from fganalysis.measuring.progress_dataset import network_dataset
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.results import schema
from studies.kit.devices import on
from studies.kit.resumed import kept
from studies.progress.networks import data_of, loss_of, network, trained

QUANTITIES = (
    "effective_rank",
    "effective_rank_se",
    "curvature_trace",
    "gradient_curvature",
    "squared_gradient",
    "loss",
)


def cell(
    network_name: str,
    width: int,
    seed: int,
    *,
    moments: Sequence[int],
    batch: int,
    directions: int,
    device: str,
    text: Path,
    scratch: Path,
) -> xr.Dataset:
    """Effective rank and what it is made of, over (steps)."""
    data = on(device, data_of(network_name, text))

    def measured(steps: int) -> xr.Dataset:
        own = trained(network(network_name, width, seed).to(device), network_name, data, steps, seed, scratch)
        snapshot = fga.capture(own, loss_of(network_name), *data.batch(batch, seed), step=steps)
        curvature = Curvature(snapshot, "gauss_newton")
        with curvature.threads():
            found = network_dataset(snapshot, of_network(snapshot, curvature, directions, seed), None)
        found = found.sel({schema.LAYER: schema.ALL_LAYERS})[list(QUANTITIES)].reset_coords(drop=True)
        return found.assign(parameters=((), sum(layer.weight.numel() for layer in snapshot.weights)))

    parts = [
        kept(scratch / f"moment_{steps}.nc", lambda steps=steps: measured(steps))  # type: ignore[misc]
        for steps in moments
    ]
    return xr.concat(parts, dim=xr.IndexVariable("steps", list(moments)))
