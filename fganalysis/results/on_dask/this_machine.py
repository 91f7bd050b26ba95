"""A scheduler of dask in this process, and workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import tempfile
from typing import Any

from fganalysis.results.on_dask.worker import LOOPBACK, work
from fganalysis.results.threads import one_thread
from fganalysis.results.workers import MOST_DEATHS, Lost, deaf

SECONDS_TO_CLOSE = 3.0
LOG = logging.getLogger("fganalysis.cells")
KEPT = "finished cells are kept, and the same command goes on from there"


class Local:
    """A scheduler in this process and workers that are processes of this machine, on the loopback interface."""

    def __init__(self, workers: int) -> None:
        from distributed import LocalCluster

        self._folder = tempfile.TemporaryDirectory(prefix="fganalysis-", ignore_cleanup_errors=True)
        self._deaths, self._workers = 0, workers
        self._processes: list[Any] = []
        self.cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            host=LOOPBACK,
            silence_logs=False,  # It would silence the handlers too, and with them what the study logs.
            dashboard_address=f"{LOOPBACK}:0",
            # Without a dashboard. No worker counts as dead for being silent: a process that has died is seen to have.
            scheduler_kwargs={"dashboard": False, "worker_ttl": None},
        )
        self._processes = [self._started() for _ in range(workers)]

    def replace_the_dead(self) -> None:
        for place, process in enumerate(self._processes):
            if process.is_alive():
                continue
            self._deaths += 1
            if self._deaths > (MOST_DEATHS + 1) * self._workers:
                raise Lost(
                    f"the workers on this machine end again and again, the last with exit code {process.exitcode}, as "
                    f"for want of memory: {KEPT}, with fewer workers"
                )
            LOG.warning("worker %d ended with exit code %s and is replaced", process.pid, process.exitcode)
            self._processes[place] = self._started()

    def progressed(self) -> None:
        """A cell has been finished: workers have not died without end."""
        self._deaths = 0

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._processes = []

    def close(self) -> None:
        self.kill()
        with contextlib.suppress(Exception):
            self.cluster.close(timeout=SECONDS_TO_CLOSE)
        self._folder.cleanup()

    def _started(self) -> Any:
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(self.cluster.scheduler_address, self._folder.name), daemon=True
        )
        with one_thread(), deaf():
            process.start()
        return process
