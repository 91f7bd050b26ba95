"""A study that is killed at any moment and started again ends as one that nothing disturbed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fganalysis.results.cells import Results, run_cells, same
from tests.unit.results.small_cells import small_cells

ROOT = Path(__file__).resolve().parents[2]
N_CELLS = 24
SECONDS = 0.02  # That a cell takes at the least, so that kills meet cells that are being computed.


def assert_undisturbed(folder: Path, calls: Path, kills: int, tmp_path: Path) -> None:
    """The tree is that of an undisturbed run, nothing else is left, and each kill cost the cells in flight at most."""
    cells = small_cells(N_CELLS, SECONDS, calls=calls)
    results = run_cells(cells, folder)
    undisturbed = run_cells(small_cells(N_CELLS, SECONDS, calls=tmp_path / "others"), tmp_path / "undisturbed")
    assert list(results) == list(undisturbed) and all(same(results[name], undisturbed[name]) for name in results)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(f"{cell.name}.nc" for cell in cells)
    computed = [int(line) for line in calls.read_text().split()]
    assert set(computed) == set(range(N_CELLS)) and len(computed) <= N_CELLS + kills


def run(folder: Path, calls: Path, workers: int = 1) -> Results:
    return run_cells(small_cells(N_CELLS, SECONDS, calls=calls), folder, workers=workers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that each does not import torch")
def test_a_study_killed_at_twenty_random_moments_is_that_which_was_not(tmp_path: Path) -> None:
    moments, folder, calls = random.Random(0), tmp_path / "out", tmp_path / "calls"
    killed = 0
    while killed < 20:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            run(folder, calls)
            os._exit(0)
        time.sleep(moments.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    run(folder, calls)
    assert_undisturbed(folder, calls, 20, tmp_path)


PROGRAM = """
import sys
from pathlib import Path
from tests.studies.test_killed import run
if __name__ == "__main__":
    print(run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).computed)
"""


def started(program: Path, *arguments: object) -> subprocess.Popen:
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_for(calls: Path, n: int) -> None:
    until = time.monotonic() + 120
    while not calls.exists() or len(calls.read_text().split()) < n:
        assert time.monotonic() < until
        time.sleep(0.01)


def descendants(process: int) -> list[int]:
    """The processes that a process has started and those that they have started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, parent = int(file.parent.name), int(file.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == process:
            found += [number, *descendants(number)]
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
def test_workers_end_with_a_killed_study_and_the_next_run_goes_on(tmp_path: Path) -> None:
    folder, calls = tmp_path / "out", tmp_path / "calls"
    study = started(tmp_path / "program.py", folder, calls, 2)
    wait_for(calls, 3)
    workers = descendants(study.pid)
    assert len(workers) >= 2
    study.kill()
    study.communicate()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert_undisturbed(folder, calls, 4, tmp_path)


def test_two_processes_share_a_folder_and_one_killed_leaves_its_cells_to_the_other(tmp_path: Path) -> None:
    folder, calls = tmp_path / "out", tmp_path / "calls"
    first = started(tmp_path / "program.py", folder, calls, 1)
    second = started(tmp_path / "program.py", folder, calls, 1)
    wait_for(calls, 4)
    first.kill()
    first.communicate()
    shown, _ = second.communicate(timeout=120)
    assert second.returncode == 0 and shown.splitlines()[-1].isdigit()
    assert_undisturbed(folder, calls, 1, tmp_path)


def test_two_processes_on_one_folder_do_no_cell_twice(tmp_path: Path) -> None:
    folder, calls = tmp_path / "out", tmp_path / "calls"
    both = [started(tmp_path / "program.py", folder, calls, 1) for _ in range(2)]
    computed = [int(one.communicate(timeout=240)[0].splitlines()[-1]) for one in both]
    assert sum(computed) == N_CELLS
    assert_undisturbed(folder, calls, 0, tmp_path)


STUDY = ["-m", "studies.tangents", "--largest-n", "6", "--largest-k", "6", "--draws", "20", "--workers"]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize(
    ("end", "code", "workers", "when"),
    [
        (signal.SIGTERM, 143, 1, "computing"),
        (signal.SIGINT, 130, 1, "computing"),
        (signal.SIGTERM, 143, 2, "computing"),
        (signal.SIGINT, 130, 2, "computing"),
        (signal.SIGTERM, 143, 1, "starting"),
        (signal.SIGINT, 130, 1, "starting"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
def test_a_study_that_is_ended_says_so_by_its_exit_code_alone(
    end: signal.Signals, code: int, workers: int, when: str, tmp_path: Path
) -> None:
    study = subprocess.Popen(
        [sys.executable, *STUDY, str(workers), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # So that the group, as of a terminal, is the study's alone.
    )
    if when == "computing":
        until = time.monotonic() + 120
        while not list(tmp_path.rglob("*.nc")):
            assert time.monotonic() < until and study.poll() is None
            time.sleep(0.01)
    else:
        time.sleep(0.5)
    processes = descendants(study.pid)
    started_ending = time.monotonic()
    if end == signal.SIGINT:
        os.killpg(study.pid, end)  # A terminal sends it to all processes.
    else:
        study.send_signal(end)
    _, errors = study.communicate(timeout=60)
    assert study.returncode == code and "Traceback" not in errors, errors
    assert time.monotonic() - started_ending < 5
    until = time.monotonic() + 5
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not left_in(tmp_path)
    assert ("interrupted: what is finished is kept" in errors) == (end == signal.SIGINT and when == "computing")
    log = tmp_path / "out" / "study.log"
    assert not log.exists() or re.search(r"\d+ INFO 0 of 7 cells are finished in", log.read_text())
