"""Claims on cells: one holder at a time, and those of dead processes lapse."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fganalysis.results import claims

HOLDING = """
import sys, time
from pathlib import Path
from fganalysis.results import claims
claim = claims.take(Path(sys.argv[1]))
print("held" if claim else "refused", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["locks", "no locks"])
def cell(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "no locks":

        def unknown(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", unknown)
    return tmp_path / "folder" / "cell.nc"


def test_a_cell_has_one_holder_and_is_free_afterwards(cell: Path) -> None:
    claim = claims.take(cell)
    assert claim is not None and claims.take(cell) is None
    other = claims.take(cell.with_name("other.nc"))
    assert other is not None
    claim.release()
    again = claims.take(cell)
    assert again is not None
    claim.release()  # Too late, and without effect on the new holder.
    assert claims.take(cell) is None
    again.release()
    other.release()
    assert not list(cell.parent.iterdir())


def test_the_claim_of_a_killed_process_lapses_at_once(tmp_path: Path) -> None:
    cell = tmp_path / "cell.nc"
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(cell)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert claims.take(cell) is None
    holder.kill()
    holder.wait()
    holder.stdout.close()
    claim = claims.take(cell)
    assert claim is not None
    claim.release()
    assert not list(tmp_path.iterdir())


def test_without_locks_a_claim_lapses_that_nobody_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    monkeypatch.setattr(claims, "LAPSE", 0.4)
    cell = tmp_path / "cell.nc"
    (tmp_path / ".cell.nc.holder").write_text("of a dead process")
    assert claims.take(cell) is None
    time.sleep(0.5)
    # A live holder touches its claim, so that the same time passes without its lapse.
    monkeypatch.setattr(claims, "BEAT", 0.05)
    claim = claims.take(cell)
    assert claim is not None
    for _ in range(4):
        assert claims.take(cell) is None
        time.sleep(0.2)
    claim.release()
    assert not list(tmp_path.iterdir())


def test_what_dead_processes_left_is_removed_and_what_live_ones_use_is_not(tmp_path: Path) -> None:
    held, names = claims.take(tmp_path / "held.nc"), ("dead.nc", "held.nc")
    left = [tmp_path / f".{name}.{'0123456789abcdef'}.part" for name in (*names, "foreign.nc")]
    for file in (*left, tmp_path / ".dead.nc.claim", tmp_path / "dead.nc"):
        file.write_text("half")
    claims.sweep(tmp_path, names)
    assert {file.name for file in tmp_path.iterdir()} == {left[1].name, left[2].name, ".held.nc.claim", "dead.nc"}
    claims.sweep(tmp_path / "missing", names)
    assert held is not None
    held.release()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cell\.nc cannot be written: (file exists|not a directory)"):
        claims.take(tmp_path / "file" / "cell.nc")
