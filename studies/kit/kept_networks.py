"""The states of trained networks as Datasets: what one cell has trained, others read from its file."""

from __future__ import annotations

import hashlib
from functools import lru_cache
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
    """The network with the states that a node of a cell's file holds, loaded in place.

    A process reads a file once for all of its cells that follow each other on one network.
    """
    found = path.stat() if path.exists() else None
    network.load_state_dict(_states(path, node, (found.st_mtime_ns, found.st_size, found.st_ino) if found else ()))
    return network


@lru_cache(maxsize=1)
def _states(path: Path, node: str, version: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The states in a file as it is, which the times and sizes tell."""
    states = store.read(path)[node].to_dataset()
    return {str(name): torch.from_numpy(array.values) for name, array in states.items()}


def digest(trained: Results, name: str) -> str:
    """What identifies the networks of a cell: they follow from its identity."""
    return hashlib.sha256(trained.identities[name].encode()).hexdigest()
