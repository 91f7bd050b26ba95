"""The states of trained networks as Datasets: what one cell has trained, others read from its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import xarray as xr

from fganalysis.results import store
from fganalysis.results.cells import Results

NODE = "network"


def as_dataset(network: torch.nn.Module) -> xr.Dataset:
    """A copy of every parameter and buffer under its name."""
    states = {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}
    return xr.Dataset(
        {name: ([f"{name} {axis}" for axis in range(array.ndim)], array) for name, array in states.items()}
    )


def restored(network: torch.nn.Module, path: Path, node: str = NODE) -> torch.nn.Module:
    """The network with the states that a node of a cell's file holds, loaded in place."""
    states = store.read(path)[node].to_dataset()
    network.load_state_dict({str(name): torch.from_numpy(array.values) for name, array in states.items()})
    return network


def digest(trained: Results, name: str) -> str:
    """What identifies the networks of a cell: they follow from its identity."""
    return hashlib.sha256(trained.identities[name].encode()).hexdigest()
