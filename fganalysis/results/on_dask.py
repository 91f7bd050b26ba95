"""Workers of dask.distributed that compute cells, on this machine or on many (docs/many_machines.md).

Each worker has one cell at a time: a cell goes to a worker by name and only when the worker is free, so that what is
claimed is being computed. The bytes of a cell's file come back, and only the study itself writes. A worker that ends,
however it does, is noticed by its scheduler, and its cell computed on another. What a worker needs comes with the cell,
settings and paths of a few hundred bytes: weights and data it reads itself, from the files that these name.

dask.distributed is an extra, imported only when a scheduler is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fganalysis.arguments import check_kind, described
from fganalysis.results.workers import MOST_DEATHS, Lost, Outcome, Task, become_a_worker, deaf, one_thread, outcome_of

LOCAL = re.compile(r"local:([1-9]\d{0,3})")
ADDRESS = re.compile(r"(?:tcp|tls)://\S+:\d{1,5}")
MOST_BYTES_OF_A_SCHEDULER_FILE = 2**24
LOOPBACK = "127.0.0.1"
SECONDS_TO_CONNECT = 10.0
SECONDS_TO_START = 180.0  # Of the workers of this machine.
SECONDS_ALONE = 600.0  # After the last worker has gone, before the study gives up.
SECONDS_FRESH = 0.1  # That a look at the workers lasts: it is a question to the scheduler.
SECONDS_TO_FETCH = 10.0  # What a cell has computed; then twice as many.
SECONDS_TO_CLOSE = 3.0
LOGGERS = ("distributed", "dask", "tornado", "asyncio", "bokeh")
LOG = logging.getLogger("fganalysis.cells")
KEPT = "finished cells are kept, and the same command goes on from there"
_one_cell = threading.Lock()  # Of a process: a worker with several threads computes on one of them.


def check_scheduler(name: str, value: object) -> None:
    """local:N, the address of a scheduler, or the path of a scheduler file that is there; and dask.distributed is too.

    Raises:
        ValueError: anything else, by the argument's name.
    """
    address_of(name, value)
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{name} needs dask.distributed, which is not installed: pip install 'fganalysis[distributed]', or leave "
            f"{name} out and use workers"
        ) from error


def address_of(name: str, value: object) -> str:
    """local:N as it is, or the address of a scheduler, from its file where it is one. Raises ValueError."""
    kinds = "local:N, tcp://host:port, tls://host:port or the path of a scheduler file"
    check_kind(name, value, str, kinds)
    text = str(value)
    if LOCAL.fullmatch(text) or ADDRESS.fullmatch(text):
        return text
    file = Path(text)
    there, known = False, None
    with contextlib.suppress(OSError, ValueError):  # Of names that no file can have, and of what is no JSON.
        there = bool(text.strip()) and file.is_file() and file.stat().st_size <= MOST_BYTES_OF_A_SCHEDULER_FILE
        known = json.loads(file.read_bytes()) if there else None
    if not there:
        raise ValueError(f"{name} must be {kinds}, got {described(text)}")
    address = known.get("address") if isinstance(known, dict) else None
    if not isinstance(address, str) or not ADDRESS.fullmatch(address):
        raise ValueError(f"{name} must be {kinds}, but {described(text)} is a file without a scheduler's address")
    return address


def log_to(handlers: Sequence[logging.Handler], level: int = logging.WARNING) -> None:
    """Sends what dask logs in this process, from a level on, to these handlers, and nothing of it to the terminal."""
    import distributed  # noqa: F401  # At its import it adds handlers for the terminal.

    for name in [*logging.root.manager.loggerDict, *LOGGERS]:
        if name.split(".")[0] in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [], True
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = list(handlers) or [logging.NullHandler()], False
        logger.setLevel(level)


@dataclass
class _Given:
    """A cell that is being computed, where, and how often a worker has ended with it; nowhere while none is free."""

    task: Task
    worker: str | None = None
    future: Any = None
    deaths: int = 0
    patience: float = SECONDS_TO_FETCH


class Dask:
    """Computes cells on the workers of a scheduler of dask.distributed.

    Args:
        scheduler: as `check_scheduler` has it. With local:N, scheduler and workers are this process and N others of one
            thread each, which listen on the loopback interface alone.

    Raises:
        ValueError: what `check_scheduler` refuses.
        OSError: a scheduler that does not answer.
    """

    def __init__(self, scheduler: str) -> None:
        check_scheduler("scheduler", scheduler)
        self._address = address_of("scheduler", scheduler)
        self._given: dict[str, _Given] = {}
        self._news = threading.Event()
        self._client: Any = None
        self._local: _Local | None = None
        self._known: set[str] = set()
        self._looked = -SECONDS_FRESH
        self._seen, self._alone_since, self._said = False, time.monotonic(), False
        try:
            if found := LOCAL.fullmatch(self._address):
                self._local = _Local(int(found[1]))
            self._client = self._connected()
        except BaseException:
            self.close()
            raise

    def idle(self) -> bool:
        return len(self._free()) > sum(given.worker is None for given in self._given.values())

    def start(self, name: str, task: Task) -> None:
        self._given[name] = _Given(task)
        self._place()

    def wait(self, seconds: float) -> list[Outcome]:
        self._news.wait(seconds)
        self._news.clear()
        outcomes: list[Outcome] = []
        try:
            for name in list(self._given):
                if (outcome := self._outcome(name)) is not None:
                    del self._given[name]
                    outcomes.append(outcome)
            if self._local is not None and outcomes:
                self._local.progressed()
            self._place()
        except OSError:
            if not outcomes:  # Otherwise these are kept first, and the next call says what is wrong.
                raise
        return outcomes

    def close(self) -> None:
        if self._local is not None:
            self._local.kill()  # A worker does not end within a cell by itself.
        if self._client is not None:
            with contextlib.suppress(Exception):
                if self._client.status == "running":
                    self._client.cancel([given.future for given in self._given.values() if given.future], force=True)
            with contextlib.suppress(Exception):
                self._client.close(timeout=SECONDS_TO_CLOSE)
        if self._local is not None:
            self._local.close()
        self._given, self._client, self._local = {}, None, None

    def _connected(self) -> Any:
        from distributed import Client

        where = self._address if self._local is None else self._local.cluster
        try:
            return Client(where, timeout=SECONDS_TO_CONNECT, set_as_default=False)
        except Exception as error:
            LOG.debug("no scheduler", exc_info=True)
            secured = ", with the certificates of dask's configuration" if self._address.startswith("tls") else ""
            raise OSError(f"no scheduler of dask answers at {self._address}{secured}: start it, and {KEPT}") from error

    def _workers(self) -> set[str]:
        """The addresses of the workers that there are now, or were a moment ago."""
        gone = f"the scheduler at {self._address} has ended or cannot be reached any more: {KEPT}"
        if self._local is not None:
            self._local.replace_the_dead()
        if self._client.status != "running":
            raise OSError(gone)
        if time.monotonic() - self._looked < SECONDS_FRESH:
            return self._known
        try:
            workers = set(self._client.nthreads())
        except Exception as error:
            LOG.debug("no scheduler any more", exc_info=True)
            raise OSError(gone) from error
        self._notice(bool(workers))
        self._known, self._looked = workers, time.monotonic()
        return workers

    def _notice(self, some: bool) -> None:
        """Says so when the scheduler has no workers, and ends the study where they do not come back."""
        if some:
            self._seen, self._alone_since, self._said = True, time.monotonic(), False
            return
        alone = time.monotonic() - self._alone_since
        if self._local is None and not self._said:
            self._said = True
            tqdm.write(f"the scheduler at {self._address} has no workers: waiting for one")
        if (self._seen or self._local is not None) and alone > (SECONDS_TO_START if self._local else SECONDS_ALONE):
            raise OSError(f"there has been no worker at {self._address} for {alone / 60:.0f} minutes: {KEPT}")

    def _free(self) -> list[str]:
        return sorted(self._workers() - {given.worker for given in self._given.values() if given.worker is not None})

    def _place(self) -> None:
        """Gives each cell that is nowhere, or whose worker has gone, to a worker that is free."""
        workers = self._workers()
        for name, given in self._given.items():
            if given.worker is not None and given.worker not in workers and given.future.status in ("pending", "lost"):
                given.future.release()
                given.worker, given.future, given.deaths = None, None, given.deaths + 1
                LOG.warning("%s is computed again, because its worker has ended", name)
        free = sorted(workers - {given.worker for given in self._given.values()})
        for name, given in self._given.items():
            if given.worker is None and given.deaths <= MOST_DEATHS and free:
                given.worker = free.pop(0)
                given.future = self._client.submit(
                    _computed,
                    name,
                    given.task,
                    key=f"{name} {secrets.token_hex(8)}",
                    workers=[given.worker],
                    allow_other_workers=False,
                    pure=False,
                )
                given.future.add_done_callback(lambda _: self._news.set())
            elif given.deaths > MOST_DEATHS:
                self._news.set()  # Its outcome is known.

    def _outcome(self, name: str) -> Outcome | None:
        given = self._given[name]
        if given.deaths > MOST_DEATHS:
            return self._lost(name, given.deaths)
        if given.future is None or given.future.status in ("pending", "lost"):
            return None
        self._workers()  # If the scheduler has gone, this says so.
        if given.future.status == "cancelled":
            return Outcome(name, error=OSError(f"the scheduler at {self._address} has dropped the cell {name}: {KEPT}"))
        try:
            outcome: Outcome = given.future.result(timeout=given.patience)
        except TimeoutError:  # It is large, or its worker has just ended: then there is nothing to wait for.
            given.patience *= 2
            return None
        except Exception as error:
            return self._not_computed(name, error)
        given.future.release()
        return outcome

    def _not_computed(self, name: str, error: Exception) -> Outcome:
        """Why a worker has not even begun a cell."""
        from distributed import KilledWorker

        self._workers()
        if isinstance(error, KilledWorker):
            return self._lost(name, MOST_DEATHS + 1)
        LOG.error("%s", name, exc_info=error)
        words = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        return Outcome(
            name,
            error=OSError(
                f"the cell {name} cannot be computed by a worker ({words}): all machines need the same code and the "
                "same libraries, and workers the folder with studies/ as their working folder or on PYTHONPATH"
            ),
        )

    def _lost(self, name: str, deaths: int) -> Outcome:
        words = f"the cell {name} cannot be computed: its worker ended {deaths} times, as for want of memory"
        return Outcome(name, error=Lost(f"{words}; finished cells are kept, use fewer workers"))


class _Local:
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
            target=_work, args=(self.cluster.scheduler_address, self._folder.name), daemon=True
        )
        with one_thread(), deaf():
            process.start()
        return process


def _computed(name: str, task: Task) -> Outcome:
    """What a worker does with a cell."""
    import dask

    # Without a choice xarray sees a worker's thread, and asks the scheduler for the locks of its files.
    with _one_cell, dask.config.set(scheduler="synchronous"):
        return outcome_of(name, task)


def _work(scheduler: str, folder: str) -> None:
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
