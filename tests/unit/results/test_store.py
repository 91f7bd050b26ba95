from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fganalysis as fga
from fganalysis.results import store
from tests.laws import tiny_snapshot

OF_LIBRARIES = re.compile(r"h5py|hdf5|h5netcdf|xarray|synchronously|b-tree|errno|object|group|unable", re.IGNORECASE)


def measured() -> xr.Dataset:
    return fga.sample(tiny_snapshot((3, 4, 2)), "activity", n_guesses=32)


def of_strings() -> xr.Dataset:
    return xr.Dataset(
        {"value": ("kind", [1.0, 2.0])}, {"kind": ["upstream", "W̃⊥"]}, {"seed": 3, "note": "a", "ks": [1, 2]}
    )


def seal(content: bytes) -> bytes:
    """The checksum's bytes at a file's end."""
    return content[-store.SEAL_LENGTH :]


def test_a_cell_comes_back_as_it_was_with_provenance(tmp_path: Path) -> None:
    dataset = measured()
    path = store.write(dataset, tmp_path / "cell.nc")
    back = fga.open_results(path)
    xr.testing.assert_equal(back.to_dataset(), dataset)
    for name in ("git_commit", "created_at", "creation_library", "creation_library_version", "seed", "block_size"):
        assert name in back.attrs, name
    assert "torch" in json.loads(back.attrs["versions"])
    with xr.open_dataset(path, engine="h5netcdf") as plain:
        assert plain["bias"].attrs["units"] and plain["bias"].attrs["long_name"]


def test_names_longer_than_those_of_the_first_file_stay_whole(tmp_path: Path) -> None:
    for file, kinds in (("short", ["upstream"]), ("long", ["orthogonal, bottom", "orthogonal"])):
        cell = xr.Dataset({"value": ("kind", np.arange(len(kinds)) + 1.0)}, {"kind": kinds})
        store.write(xr.DataTree.from_dict({"/": cell, "/below": cell}), tmp_path / f"{file}.nc")
    read = [store.read(tmp_path / f"{file}.nc") for file in ("short", "long")]
    merged = {
        path: xr.merge([tree[path].to_dataset() for tree in read], join="outer", compat="no_conflicts")
        for path in ("/", "/below")
    }
    store.write(xr.DataTree.from_dict(merged), tmp_path / "merged.nc")
    back = store.read(tmp_path / "merged.nc")
    for path in merged:
        assert set(back[path]["kind"].values) == {"upstream", "orthogonal, bottom", "orthogonal"}
        xr.testing.assert_equal(back[path].to_dataset(), merged[path])


def test_a_folder_opens_as_a_tree_of_its_cells(tmp_path: Path) -> None:
    dataset = measured()
    store.write(dataset, tmp_path / "step_0" / "activity.nc")
    store.write(dataset, tmp_path / "step_1" / "activity.nc")
    (tmp_path / "step_1" / "notes.txt").write_text("other files are left alone")
    tree = fga.open_results(tmp_path)
    assert set(tree.children) == {"step_0", "step_1"}
    np.testing.assert_array_equal(tree["step_1/activity"]["mse"], dataset["mse"])


def test_a_file_is_read_whose_checksum_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = store.write(measured(), tmp_path / "sealed.nc")
    checksum = store.read(path).encoding["checksum"]
    assert seal(path.read_bytes()) == f"\nfganalysis sha256 {checksum}\n".encode()
    # Files of earlier versions and of other programs carry none, and say so, also in a folder.
    (tmp_path / "before.nc").write_bytes(path.read_bytes()[: -store.SEAL_LENGTH])
    tree = fga.open_results(tmp_path)
    assert (tree["sealed"].encoding["checksum"], tree["before"].encoding["checksum"]) == (checksum, store.NO_CHECKSUM)
    xr.testing.assert_equal(tree["sealed"].to_dataset(), tree["before"].to_dataset())
    # What is read can be stored again, by xarray alone and by us.
    tree.to_netcdf(tmp_path / "again.nc", engine="h5netcdf")
    store.write(tree, tmp_path / "again.nc")


def kept_results(folder: Path) -> list[Path]:
    """Results of several shapes: a Dataset, texts, a tree. Small, as each is read many times."""
    numbers = measured()[["bias", "bias_se", "mse"]]
    tree = xr.DataTree.from_dict({"/": of_strings(), "/below": numbers})
    return [
        store.write(result, folder / f"{name}.nc")
        for name, result in {"numbers": numbers, "strings": of_strings(), "tree": tree}.items()
    ]


def test_no_flipped_byte_changes_a_value_or_ends_in_a_librarys_words(tmp_path: Path) -> None:
    """One byte changed in the netCDF part, 210 times, and in the checksum itself."""
    rng, named = np.random.default_rng(0), 0
    for path in kept_results(tmp_path / "kept"):
        content, truth = path.read_bytes(), store.read(path)
        whole = len(content) - store.SEAL_LENGTH
        for place in [*rng.choice(whole, 70, replace=False), *range(whole, len(content), 7)]:
            flipped = bytearray(content)
            flipped[place] ^= int(rng.integers(1, 256))
            victim = tmp_path / "victim.nc"
            victim.write_bytes(flipped)
            try:
                back = fga.open_results(victim)
            except ValueError as error:
                named += 1
                sentence = str(error)
                assert sentence.startswith(f"{victim} is damaged") and "\n" not in sentence and len(sentence) < 400
                assert not OF_LIBRARIES.search(sentence.removeprefix(str(victim))), sentence
            else:
                assert back.identical(truth), place
    assert named >= 210


@pytest.mark.parametrize("sealed", [True, False])
def test_a_file_that_is_cut_short_is_named_in_one_sentence(tmp_path: Path, sealed: bool) -> None:
    for path in kept_results(tmp_path / "kept"):
        content = path.read_bytes()
        truth, whole = store.read(path), len(content) - store.SEAL_LENGTH
        victim = tmp_path / "victim.nc"
        for length in np.linspace(0, len(content) if sealed else whole - 1, 20).astype(int):
            victim.write_bytes(content[:length])
            if length >= whole:
                assert fga.open_results(victim).identical(truth)
                continue
            with pytest.raises(
                store.Damaged, match=re.escape(f"{victim} is not a readable netCDF4 result: ")
            ) as raised:
                fga.open_results(victim)
            assert "\n" not in str(raised.value) and not OF_LIBRARIES.search(
                str(raised.value).removeprefix(str(victim))
            )


# h5netcdf tries to close once more what it could not open, when the object is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_older_files_that_do_not_open_are_named_too(tmp_path: Path) -> None:
    """Without a checksum HDF5 and xarray are what notices: whatever they raise, the sentence is ours."""
    path = kept_results(tmp_path / "kept")[0]
    content, rng = path.read_bytes()[: -store.SEAL_LENGTH], np.random.default_rng(1)
    for place in rng.choice(len(content), 60, replace=False):
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        (tmp_path / "victim.nc").write_bytes(flipped)
        try:
            store.read(tmp_path / "victim.nc")
        except store.Damaged as error:
            assert "is not a readable netCDF4 result" in str(error)


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


@pytest.mark.parametrize("attribute", [None, {"a": 1}, 2**64, {1, 2}, object()])
def test_what_netcdf_cannot_hold_is_refused_in_one_sentence(tmp_path: Path, attribute: object) -> None:
    with pytest.raises(ValueError, match=r"the result for .*cell\.nc cannot be stored: "):
        store.write(of_strings().assign_attrs(wrong=attribute), tmp_path / "cell.nc")
    with pytest.raises(ValueError, match=r"cannot be stored"):
        store.write(xr.Dataset({"value": ("x", np.array([object()]))}), tmp_path / "cell.nc")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_open_is_said_to_be_just_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.write(of_strings(), tmp_path / "cell.nc")
    for wrong in (tmp_path / "missing.nc", tmp_path / "missing" / "cell.nc"):
        with pytest.raises(ValueError, match="there is no result at"):
            store.read(wrong)
    (tmp_path / "folder.nc").mkdir()
    with pytest.raises(ValueError, match=r"folder\.nc cannot be read: is a directory"):
        store.read(tmp_path / "folder.nc")

    def refused(file: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(store, "_refuse_locked", refused)
    with pytest.raises(ValueError, match=r"cell\.nc cannot be read: permission denied") as raised:
        store.read(path)
    assert not isinstance(raised.value, store.Damaged)


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_a_locked_file_is_said_to_be_locked(tmp_path: Path) -> None:
    """By HDF5 in another process, which has it open for writing."""
    path = store.write(of_strings(), tmp_path / "cell.nc")
    program = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match=r"cell\.nc is being written by another program") as raised:
            store.read(path)
        assert not isinstance(raised.value, store.Damaged)
        holder.send_signal(signal.SIGKILL)


def test_damaged_files_are_set_aside_under_names_of_their_own(tmp_path: Path) -> None:
    for number in ("", "-2", "-3"):
        (tmp_path / "cell.nc").write_text(number)
        assert store.set_aside(tmp_path / "cell.nc") == tmp_path / f"cell.nc.damaged{number}"
    assert {file.read_text() for file in tmp_path.iterdir()} == {"", "-2", "-3"}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_code_and_never_that_of_the_users_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.py").write_text("")
    installed = tmp_path / ".venv" / "site-packages" / "fganalysis" / "store.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "-q", "-m", "theirs")
    assert store._commit(installed) == "unknown"
    assert store._commit(tmp_path / "theirs.py") == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "theirs.py").write_text("changed")
    assert store._commit(tmp_path / "theirs.py") == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    (tmp_path.parent / "nowhere.py").write_text("")
    assert store._commit(tmp_path.parent / "nowhere.py") == "unknown"


def test_without_git_results_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.provenance.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        path = store.write(of_strings(), tmp_path / "cell.nc")
        assert store.read(path).attrs["git_commit"] == "unknown"
    finally:
        store.provenance.cache_clear()


@pytest.mark.parametrize("path", [None, 3, "", "   ", b"results", ["results"], "a\0b"])
def test_what_is_no_path_is_refused(path: object) -> None:
    with pytest.raises(ValueError, match="path must be a path, got "):
        fga.open_results(path)  # type: ignore[arg-type]


def test_bad_paths_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no finished result in"):
        fga.open_results(tmp_path)
    with pytest.raises(ValueError, match=r"there is no result at .*: run the study first"):
        fga.open_results(tmp_path / "missing")
    for name, content in {
        "torn.nc": b"not a result",
        "table.csv": b"a,b\n1,2\n",
        "classic.nc": b"CDF\x01" + b"\0" * 99,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a readable netCDF4 result: another kind of file, or"):
            fga.open_results(tmp_path / name)
    # Foreign files in a folder: those that end as results do are named, the others are left alone.
    with pytest.raises(ValueError, match="is not a readable netCDF4 result"):
        fga.open_results(tmp_path)


def test_cells_that_do_not_fit_into_one_tree_are_refused_in_one_sentence(tmp_path: Path) -> None:
    store.write(xr.Dataset({"value": ("x", [1.0])}, {"x": [0]}), tmp_path / "cell.nc")
    store.write(xr.Dataset({"value": ("x", [1.0, 2.0])}, {"x": [5, 6]}), tmp_path / "cell" / "below.nc")
    with pytest.raises(ValueError, match=r"the results in .* do not fit into one tree") as raised:
        fga.open_results(tmp_path)
    assert "\n" not in str(raised.value)
    store.write(xr.DataTree.from_dict({"/below": of_strings()}), tmp_path / "cell.nc")
    with pytest.raises(ValueError, match=r"both have the node cell/below"):
        fga.open_results(tmp_path)
