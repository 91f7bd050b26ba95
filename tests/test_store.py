import json
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fganalysis as fga
from fganalysis import store
from tests.laws import tiny_snapshot


def measured() -> xr.Dataset:
    return fga.sample(tiny_snapshot((3, 4, 2)), "activity", n_guesses=32)


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
    tree = fga.open_results(tmp_path)
    assert set(tree.children) == {"step_0", "step_1"}
    np.testing.assert_array_equal(tree["step_1/activity"]["mse"], dataset["mse"])


def test_nothing_half_written_is_left_or_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.write(measured(), tmp_path / "cell.nc").read_bytes()

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write(measured(), tmp_path / "cell.nc")
    assert (tmp_path / "cell.nc").read_bytes() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["cell.nc"]


def test_bad_paths_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no finished result in"):
        fga.open_results(tmp_path)
    (tmp_path / "torn.nc").write_bytes(b"not a result")
    with pytest.raises(ValueError, match="is not a readable netCDF4 result"):
        fga.open_results(tmp_path / "torn.nc")
    with pytest.raises(ValueError, match="there is no result at"):
        store.read(tmp_path / "missing.nc")
