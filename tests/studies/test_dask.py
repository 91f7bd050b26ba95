"""Studies on workers of dask.distributed: the same bits whoever computes, whatever is killed, and nothing left behind.

Skipped without the extra `distributed`; what is said without it, tests/unit/results/test_schedulers.py tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fganalysis.results.cells import Results, run_cells, same
from fganalysis.results.identity import Cell
from fganalysis.results.workers import Failed, Lost, refused
from tests.studies.test_killed import ROOT, descendants, left_in, wait_for
from tests.unit.results.small_cells import dying, mistaken, refusing, small_cells

pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")

N_CELLS = 16
SECONDS = 0.1


def assert_same(one: Results, other: Results) -> None:
    assert list(one) == list(other) and all(same(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The cells as this process computes them."""
    return run_cells(small_cells(N_CELLS, SECONDS), tmp_path_factory.mktemp("here"))


def listeners(process: int) -> list[str]:
    """The addresses, without ports, on which a process listens; none of one that has ended."""
    found = []
    try:
        sockets = {os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()}
        for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
            for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
                parts = line.split()
                if parts[3] == "0A" and f"socket:[{parts[9]}]" in sockets:
                    words = bytes.fromhex(parts[1].split(":")[0])
                    packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                    found.append(socket.inet_ntop(family, packed))
    except FileNotFoundError:  # It has ended, as git does soon, or closed a file meanwhile.
        return []
    return found


@contextlib.contextmanager
def running(*command: str, **settings: Any) -> Iterator[subprocess.Popen]:
    """A process that ends with the test."""
    with subprocess.Popen([sys.executable, *command], text=True, stdout=subprocess.PIPE, **settings) as process:
        try:
            yield process
        finally:
            process.kill()


PROGRAM = """
import sys
from pathlib import Path
from fganalysis.results.cells import run_cells
from tests.studies.test_dask import N_CELLS, SECONDS
from tests.unit.results.small_cells import small_cells
if __name__ == "__main__":
    cells = small_cells(N_CELLS, SECONDS, calls=Path(sys.argv[2]))
    print(run_cells(cells, Path(sys.argv[1]), scheduler=sys.argv[3]).computed)
"""


def test_a_local_study_listens_on_loopback_and_one_of_two_workers_can_be_killed(
    undisturbed: Results, tmp_path: Path
) -> None:
    program, calls = tmp_path / "program.py", tmp_path / "calls"
    program.write_text(PROGRAM)
    arguments = [str(program), str(tmp_path / "out"), str(calls), "local:2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with running(*arguments, env=environment, stderr=subprocess.DEVNULL) as study:
        wait_for(calls, 3)
        heard = {process: listeners(process) for process in [study.pid, *descendants(study.pid)]}
        assert {address for addresses in heard.values() for address in addresses} == {"127.0.0.1"} and heard[study.pid]
        workers = [process for process, addresses in heard.items() if addresses and process != study.pid]
        os.kill(workers[0], signal.SIGKILL)
        shown, _ = study.communicate(timeout=120)
    assert study.returncode == 0 and shown.splitlines()[-1] == str(N_CELLS)
    # No more than the killed worker's cell was computed twice.
    assert N_CELLS <= len(calls.read_text().split()) <= N_CELLS + 1
    assert_same(run_cells(small_cells(N_CELLS, SECONDS), tmp_path / "out"), undisturbed)
    assert not left_in(tmp_path)


class Machines:
    """A scheduler and workers as other machines have them, and the file that names the scheduler."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.scheduler = self._run("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file))
        until = time.monotonic() + 60
        while not self.file.exists() or not self.file.read_text().endswith("}"):
            assert time.monotonic() < until
            time.sleep(0.05)
        self.workers: list[subprocess.Popen] = []

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def start_workers(self, n: int) -> None:
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.file.parent))
        self.workers += [self._run("worker", self.address, *options) for _ in range(n)]

    def wait_for_workers(self, n: int) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(n, timeout=60)

    def kill_worker(self) -> None:
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        worker = self.workers.pop()
        worker.kill()
        worker.wait()

    def end(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()

    def _run(self, what: str, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{what}", "--host", "127.0.0.1", *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=self.file.parent,  # Workers elsewhere have another working folder.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    (tmp_path / "machines").mkdir()
    machines = Machines(tmp_path / "machines")
    try:
        yield machines
    finally:
        machines.end()


def meanwhile(folder: Path, n: int, do: list) -> threading.Thread:
    """A thread that does some things when so many cells are there."""

    def wait_and_do() -> None:
        until = time.monotonic() + 60
        while len(list(folder.rglob("*.nc"))) < n and time.monotonic() < until:
            time.sleep(0.01)
        for each in do:
            each()

    thread = threading.Thread(target=wait_and_do)
    thread.start()
    return thread


def test_a_study_on_other_machines_survives_their_ends_with_identical_bits(
    machines: Machines, undisturbed: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = small_cells(N_CELLS, SECONDS)
    assert_same(run_cells(cells, tmp_path / "processes", workers=2), undisturbed)

    # Workers may come while the study runs, and it says that it waits for them.
    coming = threading.Timer(1.0, machines.start_workers, [4])
    coming.start()
    on_four = run_cells(cells, tmp_path / "4", scheduler=str(machines.file))
    coming.join()
    assert on_four.computed == N_CELLS
    assert_same(on_four, undisturbed)
    assert f"the scheduler at {machines.address} has no workers: waiting for one" in capsys.readouterr().out

    # Refusals and mistakes of a cell are told apart.
    with pytest.raises(ValueError, match="the seed 4 is refused") as raised:
        run_cells([Cell("refused", refusing, {"seed": 4})], tmp_path / "refused", scheduler=machines.address)
    assert refused(raised.value)
    with pytest.raises(Failed, match=r"the cell wrong failed:\n(.|\n)*in mistaken(.|\n)*ZeroDivisionError"):
        run_cells([Cell("wrong", mistaken, {"seed": 4})], tmp_path / "wrong", scheduler=machines.address)

    # A cell that ends every worker is given up, and what is finished is kept.
    hopeless = Cell("dying", dying, {"seed": 9, "deaths": 99}, places={"count": tmp_path / "count"})
    with pytest.raises(Lost, match=r"^the cell dying cannot be computed: its worker ended 3 times, as for want of mem"):
        run_cells([*cells[:2], hopeless], tmp_path / "dying", scheduler=machines.address)
    assert len((tmp_path / "count").read_text()) == 3 and not left_in(tmp_path / "dying")
    assert run_cells(cells[:2], tmp_path / "dying").computed == 0

    # Two of three workers are killed, and the one that is left computes what they had.
    machines.start_workers(2)
    machines.wait_for_workers(3)
    killing = meanwhile(tmp_path / "3", 3, [machines.kill_worker, machines.kill_worker])
    on_three = run_cells(cells, tmp_path / "3", scheduler=machines.address)
    killing.join()
    assert on_three.computed == N_CELLS
    assert_same(on_three, undisturbed)

    # The scheduler is killed while one worker computes: one sentence, and what is finished is kept.
    killing = meanwhile(tmp_path / "1", 5, [machines.scheduler.kill])
    with pytest.raises(
        OSError, match=r"^the scheduler at \S+ has ended or cannot be reached any more: finished cells "
    ):
        run_cells(cells, tmp_path / "1", scheduler=machines.address)
    killing.join()
    kept = len(list((tmp_path / "1").rglob("*.nc")))
    assert 5 <= kept < N_CELLS and not left_in(tmp_path / "1")
    with pytest.raises(OSError, match=r"^no scheduler of dask answers at tcp://\S+: start it, and finished cells"):
        run_cells(cells, tmp_path / "1", scheduler=machines.address)
    resumed = run_cells(cells, tmp_path / "1")
    assert resumed.computed == N_CELLS - kept
    assert_same(resumed, undisturbed)


STUDY = ["-m", "studies.tangents", "--largest-n", "6", "--largest-k", "6", "--draws", "20", "--scheduler"]


@pytest.mark.parametrize(("end", "code", "workers"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)])
def test_a_study_that_is_ended_leaves_no_worker_and_says_nothing_of_dask_s(
    end: signal.Signals, code: int, workers: int, tmp_path: Path
) -> None:
    arguments = [*STUDY, f"local:{workers}", "--out", str(tmp_path / "out")]
    # A session of its own, so that the group, as of a terminal, is the study's alone.
    with running(*arguments, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as study:
        until = time.monotonic() + 120
        while not list(tmp_path.rglob("*.nc")):
            assert time.monotonic() < until and study.poll() is None
            time.sleep(0.01)
        processes, began = descendants(study.pid), time.monotonic()
        assert len(processes) > workers
        if end == signal.SIGINT:
            os.killpg(study.pid, end)  # A terminal sends it to all processes.
        else:
            study.send_signal(end)
        _, errors = study.communicate(timeout=60)
    assert study.returncode == code and time.monotonic() - began < 15
    until = time.monotonic() + 5
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not left_in(tmp_path)
    assert " was computed in " in (tmp_path / "out" / "study.log").read_text()  # dask silences no other log.
    shown = [line for line in errors.replace("\r", "\n").splitlines() if line.strip() and "cell/s" not in line]
    assert [line for line in shown if "s/cell" not in line and "?cell" not in line] == (
        ["interrupted: what is finished is kept, and the same command goes on from there"] if code == 130 else []
    )
