"""No damaged file changes a value or ends in the words of a library; it is set aside."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fganalysis as fga
from fganalysis.results import store
from tests.unit.results.kept import measured, of_strings

OF_LIBRARIES = re.compile(r"h5py|hdf5|xarray|synchronously|b-tree|errno|object|group|unable", re.IGNORECASE)


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
