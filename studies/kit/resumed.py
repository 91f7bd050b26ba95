"""What is kept of an unfinished cell: its training goes on from its own checkpoints after a kill, its parts stay.

The training is cut into parts of whole epochs. The end of a part is a checkpoint, and its log a file beside it. How
long the parts are depends on how long they take, and no number depends on that.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

import fganalysis as fga
from fganalysis.results import store
from fganalysis.training.checkpoints import read_checkpoint
from fganalysis.training.datasets import Dataset
from fganalysis.training.loop import DEFAULT_BATCH, Run

SECONDS = 30.0  # That a part may take: what a kill costs at the most.
GROWTH = 4  # Of the epochs of a part, while parts take less.
BEGINS, DIVERGED = "begins_at_step", "diverged_at_step"


def train(
    network: torch.nn.Module,
    data: Dataset,
    gradient: Any,
    scratch: Path,
    *,
    epochs: int,
    checkpoints: Sequence[int] = (),
    batch_size: int = DEFAULT_BATCH,
    log_every: int = 100,
    **settings: Any,
) -> Run:
    """What `fganalysis.train` gives, bit for bit on the CPU, from parts that are each kept in ``scratch``.

    A part whose files are damaged is trained again. ``settings`` are further ones of `fganalysis.train`.
    """
    batch_size = min(batch_size, len(data.train_inputs))
    per_epoch = -(-len(data.train_inputs) // batch_size)
    last, done, n_epochs = epochs * per_epoch, 0, 1
    logs: list[xr.Dataset] = []
    before: Path | None = None
    for end, checkpoint, log in _finished(scratch, checkpoints):
        done, before = end, checkpoint
        logs.append(log)
    while True:
        end, started = min(last, done + n_epochs * per_epoch), time.monotonic()
        part = fga.train(
            network,
            data,
            gradient,
            epochs=end // per_epoch,
            checkpoints=sorted({end, *(step for step in checkpoints if done < step <= end or step == done == 0)}),
            out=scratch,
            batch_size=batch_size,
            log_every=log_every,
            continue_from=before,
            **settings,
        )
        # The loss at a part's end is looked at because the part ends there: the whole training need not look.
        diverged = DIVERGED in part.log.attrs and (part.log.attrs[DIVERGED] < end or end % log_every == 0)
        if diverged or end == last:
            logs.append(part.log)
            log = xr.concat([one for one in logs if one.sizes["step"]], dim="step", combine_attrs="override")
            log.attrs = dict(part.log.attrs)
            saved = {step: path for step in checkpoints if (path := _checkpoint(scratch, step)).exists()}
            if not diverged:
                _keep(part.log, done, end, scratch)
            return dataclasses.replace(part, log=log, checkpoints=saved)
        logs.append(_keep(part.log, done, end, scratch))
        done, before = end, _checkpoint(scratch, end)
        n_epochs = max(1, min(GROWTH * n_epochs, int(n_epochs * SECONDS / max(time.monotonic() - started, 1e-3))))


def backpropagated(
    network: torch.nn.Module, data: Dataset, scratch: Path, *, epochs: int, seed: int, **settings: Any
) -> Run:
    """`train` by backpropagation, logged at its two ends alone: networks that are measured are trained by it."""
    return train(network, data, "backpropagation", scratch, epochs=epochs, seed=seed, log_every=10**6, **settings)


def kept(file: Path, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """A part of a cell that is not computed again after a kill: read from the scratch folder, or made and put there."""
    try:
        part = store.read(file).to_dataset()
    except ValueError:
        store.write(make(), file)
        part = store.read(file).to_dataset()
    part.attrs = {name: value for name, value in part.attrs.items() if name not in (*store.provenance(), "created_at")}
    return part.drop_encoding()


def _keep(log: xr.Dataset, begins: int, end: int, scratch: Path) -> xr.Dataset:
    """The rows of a part but its last, which is the next part's first where the whole training logs it."""
    rows = log.sel(step=log["step"] < end).assign_attrs({BEGINS: begins})
    store.write(rows, scratch / f"log_{end:08d}.nc")
    return rows


def _finished(scratch: Path, checkpoints: Sequence[int]) -> Iterator[tuple[int, Path, xr.Dataset]]:
    """End, checkpoint and log of the parts, one after the other, of which everything is there and whole."""
    done = 0
    for file in sorted(scratch.glob("log_*.nc")):
        end = int(file.stem.removeprefix("log_"))
        try:
            log = store.read(file).to_dataset()
            for step in {end, *(step for step in checkpoints if done < step <= end or step == done == 0)}:
                read_checkpoint(_checkpoint(scratch, step))
        except ValueError:
            return
        if int(log.attrs[BEGINS]) != done:
            return
        yield end, _checkpoint(scratch, end), log
        done = end


def _checkpoint(scratch: Path, step: int) -> Path:
    return scratch / f"step_{step:06d}.safetensors"
