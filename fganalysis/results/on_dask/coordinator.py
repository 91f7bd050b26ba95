"""The study's side: cells go to workers of dask that are free, and what they have computed comes back."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from fganalysis.results.on_dask.addresses import LOCAL, address_of, check_scheduler
from fganalysis.results.on_dask.this_machine import KEPT, SECONDS_TO_CLOSE, Local
from fganalysis.results.on_dask.worker import computed
from fganalysis.results.workers import MOST_DEATHS, Lost, Outcome, Task

SECONDS_TO_CONNECT = 10.0
SECONDS_TO_START = 180.0  # Of the workers of this machine.
SECONDS_ALONE = 600.0  # After the last worker has gone, before the study gives up.
SECONDS_FRESH = 0.1  # That a look at the workers lasts: it is a question to the scheduler.
SECONDS_TO_FETCH = 10.0  # What a cell has computed; then twice as many.
LOG = logging.getLogger("fganalysis.cells")


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
        self._local: Local | None = None
        self._known: set[str] = set()
        self._looked = -SECONDS_FRESH
        self._seen, self._alone_since, self._said = False, time.monotonic(), False
        try:
            if found := LOCAL.fullmatch(self._address):
                self._local = Local(int(found[1]))
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
        # In two parts, so that a client that fails is closed here. The garbage collector would close it at any time, as
        # while another client starts, and the two then wait for each other's lock for ever.
        client = Client.__new__(Client)
        try:
            client.__init__(where, timeout=SECONDS_TO_CONNECT, set_as_default=False)
            return client
        except Exception as error:
            with contextlib.suppress(Exception):
                client.close(timeout=SECONDS_TO_CLOSE)
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
                    computed,
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
