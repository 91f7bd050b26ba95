"""Processes on this machine that compute cells, by the standard library alone.

Each is forked from a server that has imported the package and done nothing else, so that it starts at once and shares
no lock and no thread of torch's; where there is no fork it is spawned. It has one thread for its arithmetic, and sends
back the bytes of a cell's file: only the study itself writes. A process that dies, as for want of memory, is replaced,
and its cell computed again. All end with the study, however that ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from tqdm import tqdm

from fganalysis.results.threads import one_thread

MOST_DEATHS = 2  # Of the processes that compute one cell, before the study gives it up.

Task = Callable[[], bytes]  # That of another process: a partial of a module's function.


class Failed(RuntimeError):
    """A cell whose function made a mistake in another process, with the traceback from there."""


class Lost(OSError):
    """A cell whose processes were killed again and again."""


@dataclass(frozen=True)
class Outcome:
    """The bytes of a finished cell's file, or why there are none."""

    name: str
    content: bytes = b""
    error: BaseException | None = None


class Runner(Protocol):
    """Who computes: this process, others on this machine, or others elsewhere."""

    def idle(self) -> bool:
        """Whether it takes a task now."""
        ...

    def start(self, name: str, task: Task) -> None:
        """Begins a task."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """What has been finished since, waited for at most so long."""
        ...

    def close(self) -> None:
        """Ends all work at once."""
        ...


def refused(error: BaseException) -> bool:
    """Whether an error is a refusal in a sentence of the project's, raised by its own code, and no mistake."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and (frames[-1].line or "").startswith("raise ")


class InProcess:
    """Computes each cell in this process, when it is started."""

    def __init__(self) -> None:
        self._done: list[Outcome] = []

    def idle(self) -> bool:
        return not self._done

    def start(self, name: str, task: Task) -> None:
        self._done.append(Outcome(name, task()))

    def wait(self, seconds: float) -> list[Outcome]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        pass


class _Process:
    """One process and the task that it has."""

    def __init__(self) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        context.set_forkserver_preload(["fganalysis.public_names"])
        self.connection, other = context.Pipe()
        with one_thread(), deaf():
            # The environment goes along: the server's is that of the first study of this process.
            self.process = context.Process(target=_serve, args=(other, dict(os.environ)), daemon=True)
            self.process.start()
        other.close()  # So that the end of the process is the end of the pipe.
        self.name, self.task, self.deaths = "", None, 0  # type: tuple[str, Task | None, int]

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Processes:
    """Computes cells in several processes, which are started when there is work for them."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._all: list[_Process] = []

    def idle(self) -> bool:
        return len(self._all) < self._workers or any(each.task is None for each in self._all)

    def start(self, name: str, task: Task) -> None:
        free = next((each for each in self._all if each.task is None), None)
        if free is None:
            free = _Process()
            self._all.append(free)
        free.name, free.task, free.deaths = name, task, 0
        self._send(free)

    def wait(self, seconds: float) -> list[Outcome]:
        busy = {each.connection: each for each in self._all if each.task is not None}
        outcomes = []
        for ready in wait(list(busy), timeout=seconds):
            process = busy[ready]
            try:
                outcome = process.connection.recv()
            except (EOFError, OSError):
                outcome = self._again(process)
            if outcome is not None:
                outcomes.append(outcome)
                process.task = None
        return outcomes

    def close(self) -> None:
        for each in self._all:
            each.kill()
        self._all = []

    def _send(self, process: _Process) -> None:
        with contextlib.suppress(OSError):  # It has died: the pipe's end says so when it is waited for.
            process.connection.send((process.name, process.task))

    def _again(self, dead: _Process) -> Outcome | None:
        """Gives the cell of a dead process to a new one, or gives it up."""
        dead.kill()
        if dead.deaths == MOST_DEATHS:
            self._all.remove(dead)
            how = dead.process.exitcode
            return Outcome(
                dead.name,
                error=Lost(
                    f"the cell {dead.name} cannot be computed: its process ended {MOST_DEATHS + 1} times, last with "
                    f"exit code {how}, as for want of memory; finished cells are kept, use fewer workers"
                ),
            )
        new = _Process()
        new.name, new.task, new.deaths = dead.name, dead.task, dead.deaths + 1
        self._all[self._all.index(dead)] = new
        self._send(new)
        return None


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    """What a process does until its pipe, or the study, ends."""
    os.environ.clear()
    os.environ.update(environment)
    become_a_worker()
    with contextlib.suppress(EOFError, OSError):
        while True:
            name, task = connection.recv()
            connection.send(outcome_of(name, task))


def outcome_of(name: str, task: Task) -> Outcome:
    """Runs a task: the content of its cell, or its refusal or mistake as another process can be told of it."""
    try:
        return Outcome(name, task())
    except Exception as error:
        if refused(error) or isinstance(error, OSError):
            return Outcome(name, error=type(error)(str(error)) if type(error) is ValueError else OSError(str(error)))
        return Outcome(name, error=Failed(f"the cell {name} failed:\n{traceback.format_exc()}"))


def become_a_worker() -> None:
    """Makes this process one that ends with the study that has started it, however that ends, and leaves nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the study ends this one.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A bar's lock is a semaphore that other processes see. That of a killed process is left, which Python reports.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_the_study, daemon=True).start()


def _end_with_the_study() -> None:
    parent: Any = multiprocessing.parent_process()
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """What is started meanwhile never hears of Ctrl-C, which goes to all processes of a terminal, even at its begin."""
    if not hasattr(signal, "pthread_sigmask"):  # On Windows.
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
