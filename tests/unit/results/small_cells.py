"""Small cells to run by the engine: functions of a module, as other processes import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from threadpoolctl import threadpool_info

from fganalysis.results.identity import Cell


def drawn(seed: int, n: int = 4, seconds: float = 0.0, calls: Path | None = None) -> xr.Dataset:
    """Some numbers of a seed, after some time; a line in ``calls`` tells that they were computed."""
    if calls is not None:
        with open(calls, "a") as file:
            file.write(f"{seed}\n")
    time.sleep(seconds)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(64, 64, generator=generator)
    values = torch.linalg.svdvals(matrix @ matrix)[:n].double().numpy()
    return xr.Dataset({"value": ("x", values)}, {"x": np.arange(n)}, {"seed": seed})


def threads() -> xr.Dataset:
    """How many threads each library has: torch, and every BLAS."""
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return xr.Dataset({"threads": ("library", [torch.get_num_threads(), *blas])})


def refusing(seed: int) -> xr.Dataset:
    raise ValueError(f"the seed {seed} is refused")


def mistaken(seed: int) -> xr.Dataset:
    return xr.Dataset({"value": 1 / 0})


def dying(seed: int, deaths: int, count: Path) -> xr.Dataset:
    """Kills its process so many times before it is computed."""
    died = len(count.read_text()) if count.exists() else 0
    if died < deaths:
        count.write_text("x" * (died + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return drawn(seed)


def small_cells(n: int, seconds: float = 0.0, calls: Path | None = None, **settings: object) -> list[Cell]:
    return [
        Cell(
            f"part_{seed % 2}/cell_{seed}",
            drawn,
            {"seed": seed, "seconds": seconds} | settings,
            places={} if calls is None else {"calls": calls},
        )
        for seed in range(n)
    ]


def resuming(seed: int, scratch: Path) -> xr.Dataset:
    """Is interrupted half-way, and finished when it is computed again."""
    scratch.mkdir(exist_ok=True)
    if not (scratch / "half").exists():
        (scratch / "half").write_text("done")
        raise KeyboardInterrupt
    return drawn(seed)
