"""A write that fails leaves what was there, and dead runs leave nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fganalysis.results import store
from tests.unit.results.kept import measured, of_strings


def test_nothing_half_written_is_left_or_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.write(measured(), tmp_path / "cell.nc").read_bytes()

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write(measured(), tmp_path / "cell.nc")
    assert (tmp_path / "cell.nc").read_bytes() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["cell.nc"]


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes are limited on POSIX only")
def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path: Path) -> None:
    """A real failure of the operating system, in a process of its own: HDF5 ended it by a segmentation fault."""
    path = store.write(of_strings(), tmp_path / "cell.nc")
    before = path.read_bytes()
    program = """
import resource, signal, sys
import xarray as xr
from fganalysis.results import store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.write(xr.Dataset({"value": ("x", [1.0, 2.0])}), sys.argv[1])
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{path} cannot be written: file too large\n"), done.stderr
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_while_it_is_written_to_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cell\.nc cannot be written: no space left on device"):
        store.write(of_strings(), tmp_path / "cell.nc")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cell\.nc cannot be written: (file exists|not a directory)"):
        store.write(of_strings(), tmp_path / "file" / "cell.nc")


def test_dead_runs_leave_nothing_and_live_ones_are_left_alone(tmp_path: Path) -> None:
    names = {name: tmp_path / f".{name}.nc.0123456789abcdef.part" for name in ("cell", "other")}
    fresh = tmp_path / ".cell.nc.fedcba9876543210.part"
    for file in (*names.values(), fresh):
        file.write_bytes(b"half")
    for file in names.values():
        os.utime(file, (0, 0))
    store.write(of_strings(), tmp_path / "cell.nc")
    assert {file.name for file in tmp_path.iterdir()} == {"cell.nc", names["other"].name, fresh.name}
