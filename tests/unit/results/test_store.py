"""Results come back from disk as they were written, a folder as one tree, and wrong paths are refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fganalysis as fga
from fganalysis.results import store
from tests.unit.results.kept import measured, of_strings


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
    with xr.open_dataset(path, engine="netcdf4") as plain:
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
    tree.to_netcdf(tmp_path / "again.nc", engine="netcdf4")
    store.write(tree, tmp_path / "again.nc")


@pytest.mark.parametrize("attribute", [None, {"a": 1}, 2**64, {1, 2}, object()])
def test_what_netcdf_cannot_hold_is_refused_in_one_sentence(tmp_path: Path, attribute: object) -> None:
    with pytest.raises(ValueError, match=r"the result for .*cell\.nc cannot be stored: "):
        store.write(of_strings().assign_attrs(wrong=attribute), tmp_path / "cell.nc")
    with pytest.raises(ValueError, match=r"cannot be stored"):
        store.write(xr.Dataset({"value": ("x", np.array([object()]))}), tmp_path / "cell.nc")
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT])
def test_a_folder_that_cannot_be_read_or_changes_meanwhile_is_named_in_one_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(of_strings(), tmp_path / "cell.nc")
    (tmp_path / "below").mkdir()
    scandir = os.scandir

    def failing(folder: str) -> object:
        if str(folder).endswith("below"):
            raise OSError(number, os.strerror(number), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    cause = f"{os.strerror(number).lower()} at .*below; name a folder that holds results alone$"
    with pytest.raises(ValueError, match=rf"cannot be searched for results: {cause}"):
        fga.open_results(tmp_path)


def test_a_path_that_no_file_system_takes_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be searched for results: file name too long; name"):
        fga.open_results(tmp_path / ("x" * 300))


def test_cells_that_do_not_fit_into_one_tree_are_refused_in_one_sentence(tmp_path: Path) -> None:
    store.write(xr.Dataset({"value": ("x", [1.0])}, {"x": [0]}), tmp_path / "cell.nc")
    store.write(xr.Dataset({"value": ("x", [1.0, 2.0])}, {"x": [5, 6]}), tmp_path / "cell" / "below.nc")
    with pytest.raises(ValueError, match=r"the results in .* do not fit into one tree") as raised:
        fga.open_results(tmp_path)
    assert "\n" not in str(raised.value)
    store.write(xr.DataTree.from_dict({"/below": of_strings()}), tmp_path / "cell.nc")
    with pytest.raises(ValueError, match=r"both have the node cell/below"):
        fga.open_results(tmp_path)
