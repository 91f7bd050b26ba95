"""How a study's time falls with its workers, and what a cell costs besides its own work.

The same cells, each a sample of guesses, are computed by one worker and by several, in fresh folders. Cells that do
nothing show what the engine takes for each: a claim, the file with its checksum, and for other processes the way there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.throughput.steps import case

CELLS, EMPTY = 24, 100
FEW = 1024  # Guesses of the shorter of two samples whose difference says what a guess takes.
WIDTH = 128


def sampled(number: int, guesses: int) -> xr.Dataset:
    """A sample of activity perturbation on an MLP: work that one thread does."""
    snapshot = case("mlp", width=WIDTH).capture()
    measured = fga.sample(snapshot, "activity", guesses, seed=number, workers=1)
    return measured[["variance", "cosine"]]


def empty(number: int) -> xr.Dataset:
    """A cell that does nothing."""
    return xr.Dataset({"number": ((), np.int64(number))})


def measure(workers: tuple[int, ...], rounds: int, seconds: float) -> xr.Dataset:
    """Wall seconds of the whole study and of a cell that does nothing, (workers, round).

    ``seconds``: about how long the study takes with one worker. In each round every number of workers is timed once.
    """
    guesses = _guesses_for(seconds / CELLS)
    made = [Cell(f"cells/{number}", sampled, {"number": number, "guesses": guesses}) for number in range(CELLS)]
    nothing = [Cell(f"cells/{number}", empty, {"number": number}) for number in range(EMPTY)]
    whole, each = np.empty((2, len(workers), rounds))
    for repeat in range(rounds):
        for row, n_workers in enumerate(workers):
            whole[row, repeat] = _timed(made, n_workers)
            # The start of the processes is in both, so that of two numbers of cells the difference is that of cells.
            few = _timed(nothing[: EMPTY // 5], n_workers)
            each[row, repeat] = (_timed(nothing, n_workers) - few) / (EMPTY - EMPTY // 5)
    words = {"study_seconds": "wall time of a study", "cell_seconds": "wall time of a cell that does nothing"}
    values = {"study_seconds": whole, "cell_seconds": each}
    return xr.Dataset(
        {name: (("workers", "round"), values[name], {"units": "s", "long_name": words[name]}) for name in words},
        coords={"workers": list(workers)},
        attrs={"cells": CELLS, "cell_guesses": guesses},
    )


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template names."""
    whole = dataset["study_seconds"]
    ratios = whole.isel(workers=0) / whole
    rows = []
    for workers in map(int, dataset["workers"].values):
        own = ratios.sel(workers=workers)
        rows.append(
            [
                str(workers),
                f"{float(whole.sel(workers=workers).median()):.1f}",
                f"{float(own.median()):.2f}",
                f"{float(own.min()):.2f} to {float(own.max()):.2f}",
                f"{1e3 * float(dataset['cell_seconds'].sel(workers=workers).median()):.1f}",
            ]
        )
    return {
        "settings": dataset.attrs,
        "most": int(dataset["workers"].values[-1]),
        "gain": float(ratios.isel(workers=-1).median()),
        "overhead": 1e3 * float(dataset["cell_seconds"].median("round").max()),
        "rows": rows,
    }


def _guesses_for(seconds: float) -> int:
    """Guesses that take one thread about so long, a power of two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sampled(0, FEW)  # What is done once in a process is done before anything is timed.
        taken = [_seconds(lambda n=n: sampled(0, n)) for n in (FEW, 5 * FEW)]  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads)
    return 1 << max(10, int(np.log2(seconds / max((taken[1] - taken[0]) / (4 * FEW), 1e-6))))


def _timed(cells: list[Cell], workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _seconds(lambda: run_cells(cells, folder, workers=workers))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
