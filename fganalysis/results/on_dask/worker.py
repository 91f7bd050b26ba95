"""What a worker of dask does: a cell, and on this machine a process that waits for cells."""

from __future__ import annotations

import asyncio
import threading

from fganalysis.results.on_dask.logs import log_to
from fganalysis.results.workers import Outcome, Task, become_a_worker, outcome_of

LOOPBACK = "127.0.0.1"
_one_cell = threading.Lock()  # Of a process: a worker with several threads computes on one of them.


def computed(name: str, task: Task) -> Outcome:
    """What a worker does with a cell."""
    import dask

    # Without a choice xarray sees a worker's thread, and asks the scheduler for the locks of its files.
    with _one_cell, dask.config.set(scheduler="synchronous"):
        return outcome_of(name, task)


def work(scheduler: str, folder: str) -> None:
    """What a worker of this machine does until it, or the study, ends."""
    become_a_worker()
    log_to([])
    asyncio.run(_serve(scheduler, folder))


async def _serve(scheduler: str, folder: str) -> None:
    from distributed import Worker

    async with Worker(
        scheduler, nthreads=1, host=LOOPBACK, memory_limit=0, dashboard=False, local_directory=folder
    ) as worker:
        await worker.finished()
