"""The engine of cells: what is missing is computed and nothing else, and nothing that is not the cell is used."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fganalysis.results import cells as engine
from fganalysis.results import identity, store, workers
from fganalysis.results.cells import Results, run_cells, same
from fganalysis.results.identity import Cell
from tests.unit.results.damaged import damage
from tests.unit.results.small_cells import drawn, dying, mistaken, refusing, small_cells

ONE = Cell("cell", drawn, {"seed": 0})


def calls_of(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same(one: Results, other: Results) -> None:
    assert list(one) == list(other)
    assert all(same(one[name], other[name]) for name in one)


def test_what_is_missing_is_computed_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls, cells = tmp_path / "calls", small_cells(4, calls=tmp_path / "calls")
    first = run_cells(cells, tmp_path / "out")
    assert first.computed == 4 and calls_of(calls) == [0, 1, 2, 3]
    assert files_of(tmp_path / "out") == [f"part_{seed % 2}/cell_{seed}.nc" for seed in (0, 2, 1, 3)]
    times = [first.path(name).stat().st_mtime_ns for name in first]
    again = run_cells(cells, tmp_path / "out")
    assert again.computed == 0 and calls_of(calls) == [0, 1, 2, 3]
    assert times == [again.path(name).stat().st_mtime_ns for name in again]
    assert "4 of 4 cells are finished" in capsys.readouterr().out
    first.path("part_1/cell_1").unlink()
    assert run_cells(cells, tmp_path / "out").computed == 1 and calls_of(calls)[4:] == [1]
    assert_same(run_cells(cells, tmp_path / "out"), run_cells(cells, tmp_path / "undisturbed"))
    np.testing.assert_array_equal(first["part_0/cell_0"]["value"], drawn(0)["value"])


def test_a_cell_carries_its_whole_identity_and_where_it_comes_from(tmp_path: Path) -> None:
    cell = Cell("cell", drawn, {"seed": 3, "n": 2}, {"mnist1d": "ab" * 32})
    attributes = run_cells([cell], tmp_path)["cell"].attrs
    known = json.loads(attributes[identity.ATTRIBUTE])
    assert known["settings"] == {"seed": 3, "n": 2} and known["data"] == {"mnist1d": "ab" * 32}
    assert known["function"] == "tests.unit.results.small_cells.drawn" and len(known["code"]) == 64
    assert set(known["versions"]) == {"python", "numpy", "scipy", "torch", "xarray"}
    assert {"git_commit", "created_at", "creation_library_version"} <= set(attributes)
    assert 10**7 < attributes["peak_memory"] < 10**12


@pytest.mark.slow
def test_one_two_and_four_workers_give_identical_bits(tmp_path: Path) -> None:
    cells = small_cells(6)
    threads = torch.get_num_threads()
    first = run_cells(cells, tmp_path / "1")
    assert torch.get_num_threads() == threads
    for n in (2, 4):
        assert_same(first, run_cells(cells, tmp_path / str(n), workers=n))
        assert files_of(tmp_path / str(n)) == files_of(tmp_path / "1")


CHANGED = [
    (Cell("cell", drawn, {"seed": 1}), "seed 0 instead of 1"),
    (Cell("cell", drawn, {"seed": 0, "n": 3}), "n None instead of 3"),
    (Cell("cell", drawn, {"seed": 0}, {"mnist1d": "1"}), "other data of mnist1d"),
    (Cell("cell", refusing, {"seed": 0}), "drawn instead of tests.unit.results.small_cells.refusing"),
]


@pytest.mark.parametrize(("other", "words"), CHANGED, ids=[words for _, words in CHANGED])
def test_a_cell_of_another_identity_is_named_set_aside_and_computed_anew(
    other: Cell, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run_cells([ONE], tmp_path).path("cell").read_bytes()
    if other.make is refusing:
        with pytest.raises(ValueError, match="the seed 0 is refused"):
            run_cells([other], tmp_path)
    else:
        assert run_cells([other], tmp_path).computed == 1
    assert (tmp_path / "cell.nc.other").read_bytes() == before
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'cell.nc'} was made with " in shown and words in shown
    assert "; the file is now cell.nc.other, and the cell is computed anew\n" in shown
    # Never deleted, however often that happens.
    run_cells([ONE], tmp_path)
    run_cells([Cell("cell", drawn, {"seed": 9})], tmp_path)
    assert len(list(tmp_path.glob("cell.nc.other*"))) == (2 if other.make is refusing else 3)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("code", "0" * 64, "was made with other code"),
        ("schema", 0, "is of schema 0 instead of 1"),
        ("versions", {"torch": "2.0.0"}, "torch 2.0.0 instead of "),
        ("versions", {"python": "3.5.0"}, "python 3.5.0 instead of "),
    ],
)
def test_a_cell_of_other_code_schema_or_libraries_is_not_used(
    part: str, value: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = json.loads(identity.identity(ONE))
    known[part] = known[part] | value if isinstance(value, dict) else value
    (tmp_path / "cell.nc").write_bytes(store.content_of(drawn(5), "cell", json.dumps(known, sort_keys=True)))
    results = run_cells([ONE], tmp_path)
    assert results.computed == 1 and float(results.dataset("cell").attrs["seed"]) == 0
    assert words in capsys.readouterr().out and (tmp_path / "cell.nc.other").exists()


@cache
def wrong_files() -> dict[str, tuple[bytes, str]]:
    """Contents that are not the cell's, and how the file is renamed."""
    whole, known = engine.content(ONE, identity.identity(ONE), None), identity.identity(ONE)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    in_identity = bytearray(whole)
    in_identity[whole.rindex(b'"seed"') + 1] ^= 1
    attributed = drawn(7).assign_attrs({identity.ATTRIBUTE: known})
    return {
        "truncated": (whole[:-1000], ".other"),
        "half": (whole[: len(whole) // 2], ".other"),
        "empty": (b"", ".other"),
        "flipped": (bytes(flipped), ".damaged"),
        "flipped in its identity": (bytes(in_identity), ".damaged"),
        "text": (b"a,b\n1,2\n", ".other"),
        "older": (store.content_of(drawn(7).assign_attrs(study_settings='{"seed": 0}'), "cell"), ".other"),
        "the right attribute with other content": (store.content_of(attributed, "cell"), ".other"),
        "the right attribute without checksum": (bytes(attributed.to_netcdf(engine="netcdf4")), ".other"),
        "the right end without checksum": (
            bytes(attributed.to_netcdf(engine="netcdf4")) + store.IDENTITY + known.encode() + b"\n",
            ".other",
        ),
        "the right end of another file": (
            bytes(attributed.to_netcdf(engine="netcdf4")) + whole[whole.rindex(store.IDENTITY) :],
            ".damaged",
        ),
    }


WRONG = (
    "truncated",
    "half",
    "empty",
    "flipped",
    "flipped in its identity",
    "text",
    "older",
    "the right attribute with other content",
    "the right attribute without checksum",
    "the right end without checksum",
    "the right end of another file",
)


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_not_the_cell_is_never_used(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, suffix = wrong_files()[kind]
    (tmp_path / "cell.nc").write_bytes(content)
    results = run_cells([ONE], tmp_path)
    assert results.computed == 1 and results["cell"].attrs["seed"] == 0
    assert (tmp_path / f"cell.nc{suffix}").read_bytes() == content
    shown = capsys.readouterr().out.splitlines()
    assert f"; the file is now cell.nc{suffix}, and the cell is computed anew" in shown[1]
    assert files_of(tmp_path) == ["cell.nc", f"cell.nc{suffix}"]


def test_a_locked_file_is_left_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cells([ONE], tmp_path)

    def locked(file: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(store, "_refuse_locked", locked)
    with pytest.raises(ValueError, match=r"cell\.nc is being written by another program"):
        run_cells([ONE], tmp_path)
    assert files_of(tmp_path) == ["cell.nc"]


def test_a_pipe_in_the_place_of_a_cell_is_said_to_be_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cell.nc")
    with pytest.raises(ValueError, match=r"cell\.nc cannot be read: it is a pipe or a device"):
        run_cells([ONE], tmp_path)


def test_a_cell_that_changes_after_the_run_is_not_given(tmp_path: Path) -> None:
    results = run_cells([ONE], tmp_path)
    run_cells([Cell("cell", drawn, {"seed": 1})], tmp_path)
    with pytest.raises(ValueError, match=r"cell\.nc has changed since it was finished, by another run"):
        results["cell"]
    damage(tmp_path / "cell.nc")
    with pytest.raises(ValueError, match="is damaged"):
        results["cell"]


def test_a_full_disk_is_one_sentence_and_nothing_is_overwritten_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, fsync = small_cells(3), os.fsync

    def full(descriptor: int) -> None:
        if len(files_of(tmp_path / "out")) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cell_1\.nc cannot be written: no space left on device"):
            run_cells(cells, tmp_path / "out")
    assert files_of(tmp_path / "out") == ["part_0/cell_0.nc"]
    assert run_cells(cells, tmp_path / "out").computed == 2
    assert_same(run_cells(cells, tmp_path / "out"), run_cells(cells, tmp_path / "undisturbed"))


def test_a_small_file_system_that_fills_up_is_one_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        done = None
    if done is None or done.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with pytest.raises(OSError, match="cannot be written: no space left on device"):
            run_cells(small_cells(40), disk)
        left = files_of(disk)
        assert left and all(name.endswith(".nc") for name in left)
        assert all(store.identity_of(disk / name) for name in left)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_can_only_be_read_serves_what_is_finished_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator may write anywhere, so the operating system's refusal is imitated."""
    cells = small_cells(2)
    run_cells(cells, tmp_path)
    opened = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    assert run_cells(cells, tmp_path).computed == 0
    with pytest.raises(OSError, match=r"cell_2\.nc cannot be written: read-only file system"):
        run_cells(small_cells(3), tmp_path)
    assert files_of(tmp_path) == ["part_0/cell_0.nc", "part_1/cell_1.nc"]


def test_refusals_and_mistakes_of_a_cell_are_told_apart_in_other_processes_too(tmp_path: Path) -> None:
    for n in (1, 2):
        cells = [*small_cells(2), Cell("refused", refusing, {"seed": 4}), *small_cells(5)[3:]]
        with pytest.raises(ValueError, match="the seed 4 is refused") as raised:
            run_cells(cells, tmp_path / str(n), workers=n)
        assert workers.refused(raised.value)
        kept = files_of(tmp_path / str(n))  # What is finished is kept, and nothing else is left.
        assert kept and all(name.endswith(".nc") for name in kept)
    wrong = [Cell(f"wrong_{seed}", mistaken, {"seed": seed}) for seed in range(2)]
    with pytest.raises(ZeroDivisionError):
        run_cells(wrong, tmp_path)
    with pytest.raises(workers.Failed, match=r"the cell wrong_\d failed:\n(.|\n)*in mistaken(.|\n)*ZeroDivisionError"):
        run_cells(wrong, tmp_path, workers=2)
    assert not list(tmp_path.rglob(".*"))


def test_a_killed_worker_is_replaced_and_its_cell_computed_again(tmp_path: Path) -> None:
    cells = [*small_cells(3), Cell("dying", dying, {"seed": 9, "deaths": 2}, places={"count": tmp_path / "count"})]
    results = run_cells(cells, tmp_path / "out", workers=2)
    assert results.computed == 4 and results["dying"].attrs["seed"] == 9
    hopeless = [Cell("dying", dying, {"seed": 9, "deaths": 99}, places={"count": tmp_path / "again"})]
    with pytest.raises(OSError, match=r"the cell dying cannot be computed: its process ended 3 times, last with exit "):
        run_cells([*hopeless, *small_cells(5)], tmp_path / "out", workers=2)
    assert len((tmp_path / "again").read_text()) == 3
    assert "part_0/cell_2.nc" in files_of(tmp_path / "out") and not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize("name", ["", "/tmp/cell", "../cell", "a/../../b", ".hidden", "a/.b", None, 3])
def test_a_cell_lies_below_the_folder_of_its_study(name: object) -> None:
    with pytest.raises(ValueError, match="the name of a cell must be a path below the study's folder, got "):
        Cell(name, drawn, {"seed": 0})  # type: ignore[arg-type]


def test_wrong_studies_are_refused_in_one_sentence(tmp_path: Path) -> None:
    def inside(seed: int) -> xr.Dataset:
        return drawn(seed)

    with pytest.raises(ValueError, match="the function of the cell cell must be one of a module that other processes"):
        Cell("cell", inside, {"seed": 0})
    with pytest.raises(ValueError, match="the cells of a study must have different names"):
        run_cells([ONE, ONE], tmp_path)
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1, got 0"):
        run_cells([ONE], tmp_path, workers=0)
    with pytest.raises(ValueError, match="the setting seed of a cell must be a number, a text, a list or a dataclass"):
        run_cells([Cell("cell", drawn, {"seed": object()})], tmp_path)
    with pytest.raises(ValueError, match="a cell must be a Cell, got 3"):
        run_cells([3], tmp_path)  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


def test_nothing_is_unpickled_from_a_results_folder(tmp_path: Path) -> None:
    """No module that reads results knows pickle, and a pickle in a cell's place is a file of another kind."""
    import pickle

    (tmp_path / "cell.nc").write_bytes(pickle.dumps(exit))
    assert run_cells([ONE], tmp_path).computed == 1
    for file in Path(store.__file__).parent.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "pickle" not in text and "torch.load" not in text, file


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
def test_a_cell_s_checkpoints_go_when_it_is_finished(tmp_path: Path) -> None:
    from tests.unit.results.small_cells import resuming

    cell = Cell("cell", resuming, {"seed": 0}, resumes=True)
    with pytest.raises(KeyboardInterrupt):
        run_cells([cell], tmp_path)
    (scratch,) = tmp_path.glob(".cell.nc.*.scratch")
    assert (scratch / "half").exists() and not list(tmp_path.glob("*.nc")) and not list(tmp_path.glob("*.claim"))
    # Checkpoints of another identity are not gone on from.
    with pytest.raises(KeyboardInterrupt):
        run_cells([Cell("cell", resuming, {"seed": 1}, resumes=True)], tmp_path)
    assert run_cells([cell], tmp_path).computed == 1
    assert files_of(tmp_path) == ["cell.nc"] and not list(tmp_path.rglob(".*"))
