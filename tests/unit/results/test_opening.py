"""A study's folder as one tree, read when it is asked for; and only what a result may hold is read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import fganalysis as fga
from fganalysis.results import store
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from tests.unit.results.damaged import damage
from tests.unit.results.kept import of_strings
from tests.unit.results.small_cells import drawn, small_cells


def test_ten_thousand_cells_open_in_seconds_and_are_read_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = run_cells([Cell("cell", drawn, {"seed": 1})], tmp_path / "one").path("cell").read_bytes()
    for number in range(10_000):
        file = tmp_path / "out" / f"width_{number % 8}" / f"seed_{number}.nc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    read, asked = store.read, []
    monkeypatch.setattr(store, "read", lambda path: asked.append(path) or read(path))
    started = time.perf_counter()
    tree = fga.open_results(tmp_path / "out")
    assert time.perf_counter() - started < 5
    assert not asked and len(tree.children["width_3"].children) == 1250
    np.testing.assert_array_equal(tree["width_3/seed_11/value"], drawn(1)["value"])
    assert tree["width_3/seed_11"].path == "/width_3/seed_11"
    assert tree["width_3"].children["seed_11"].attrs["seed"] == 1 and len(asked) == 1


def test_the_lazy_tree_is_the_one_of_all_cells(tmp_path: Path) -> None:
    run_cells(small_cells(5), tmp_path)
    files = sorted(tmp_path.rglob("*.nc"))
    names = [str(file.relative_to(tmp_path).with_suffix("")) for file in files]
    whole = xr.DataTree.from_dict(
        {name: store.read(file).to_dataset() for name, file in zip(names, files, strict=True)}
    )
    tree = fga.open_results(tmp_path)
    assert tree.identical(whole) and [node.path for node in tree.subtree] == [node.path for node in whole.subtree]
    tree = fga.open_results(tmp_path)
    assert list(tree["part_1"].children) == ["cell_1", "cell_3"] and "cell_1" in tree["part_1"]
    assert "value" in repr(tree) and fga.open_results(tmp_path).copy().identical(whole)
    mapped = fga.open_results(tmp_path).map_over_datasets(lambda dataset: dataset.mean())
    np.testing.assert_allclose(mapped["part_1/cell_3/value"], whole["part_1/cell_3/value"].mean())
    assert len(fga.open_results(tmp_path).leaves) == 5 and fga.open_results(tmp_path).to_dict().keys() >= {"/part_0"}


def test_a_damaged_cell_is_said_when_it_is_asked_for(tmp_path: Path) -> None:
    results = run_cells(small_cells(3), tmp_path)
    damage(results.path("part_0/cell_2"))
    tree = fga.open_results(tmp_path)
    assert tree["part_0/cell_0"].attrs["seed"] == 0
    with pytest.raises(ValueError, match=r"cell_2\.nc is damaged: its bytes are not those that were written"):
        tree["part_0/cell_2"]


@pytest.mark.parametrize("change", ["study", "dataset", "data"])
def test_cells_of_two_studies_or_data_are_no_study(change: str, tmp_path: Path) -> None:
    known = {"study": "some", "settings": {"dataset": "digits", "seed": 0}, "data": {"digits": "1" * 64}}
    other = json.loads(json.dumps(known))
    if change == "data":
        other["data"]["digits"] = "2" * 64
    else:
        (other if change == "study" else other["settings"])[change] = "another"
    for name, one in {"a/one": known, "a/two": known, "b/three": other}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        store.write_bytes(store.content_of(of_strings(), name, json.dumps(one)), tmp_path / f"{name}.nc")
    words = {"study": "study", "dataset": "dataset", "data": "digits"}[change]
    message = rf"holds results that are not of one study: a/one\.nc and b/three\.nc have another {words}; open one of"
    with pytest.raises(ValueError, match=message):
        fga.open_results(tmp_path)
    assert set(fga.open_results(tmp_path / "a").children) == {"one", "two"}


def test_what_begins_with_a_dot_is_no_result(tmp_path: Path) -> None:
    run_cells(small_cells(2), tmp_path)
    (tmp_path / ".part_0.scratch").mkdir()
    store.write(of_strings(), tmp_path / ".part_0.scratch" / "log.nc")
    assert set(fga.open_results(tmp_path).children) == {"part_0", "part_1"}


def test_links_of_folders_in_a_circle_end(tmp_path: Path) -> None:
    run_cells(small_cells(2), tmp_path)
    (tmp_path / "part_0" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert set(fga.open_results(tmp_path)["part_0"].children) == {"cell_0"}


def circle(file: h5py.File) -> None:
    file.create_group("a")["back"] = file["/"]


def soft(file: h5py.File) -> None:
    file["a"] = h5py.SoftLink("/a")


def external(file: h5py.File) -> None:
    file["a"] = h5py.ExternalLink("other.h5", "/value")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "value", (2,))
    file.create_virtual_dataset("value", layout)


def elsewhere(file: h5py.File) -> None:
    file.create_dataset("value", (2,), "f8", external=[("other.raw", 0, 16)])


def many(file: h5py.File) -> None:
    for number in range(20_000):
        file.create_group(f"group {number}")


def deep(file: h5py.File) -> None:
    file.create_group("/".join("abcdefghijklmnopqrstuvwxyz"))


def huge(file: h5py.File) -> None:
    file.create_dataset("value", (10**12,), "f8", chunks=(1000,), compression="gzip")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (circle, "a group is within itself, or in two places"),
        (soft, "it has a link to another place or file"),
        (external, "it has a link to another place or file"),
        (virtual, "an array lies in another file"),
        (elsewhere, "an array lies in another file"),
        (many, "it has more than 16384 groups, or groups more than 16 deep"),
        (deep, "it has more than 16384 groups, or groups more than 16 deep"),
        (huge, "an array claims more numbers than the file can hold"),
    ],
)
def test_only_what_a_result_may_hold_is_read(build: Callable[[h5py.File], None], words: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["value"] = np.array([1.0, 2.0])
    with h5py.File(tmp_path / "result.nc", "w") as file:
        build(file)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=rf"result\.nc is no result: {words}"):
        fga.open_results(tmp_path / "result.nc")
    assert time.perf_counter() - started < 5


def test_a_pipe_is_no_result(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(ValueError, match=r"pipe\.nc (cannot be|there is no)"):
        fga.open_results(tmp_path / "pipe.nc")
    with pytest.raises(ValueError, match="there is no finished result in"):
        fga.open_results(tmp_path)
    with pytest.raises(ValueError, match=r"pipe\.nc cannot be read: it is a pipe or a device"):
        store.read(tmp_path / "pipe.nc")


def test_an_export_is_one_file_of_all_cells(tmp_path: Path) -> None:
    run_cells(small_cells(4), tmp_path / "out")
    target = fga.export(tmp_path / "out", tmp_path / "results.nc")
    one, whole = fga.open_results(target), fga.open_results(tmp_path / "out")
    for cell in small_cells(4):
        assert one[cell.name].to_dataset().identical(whole[cell.name].to_dataset())


def test_an_export_to_zarr_is_the_tree_and_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="the package zarr, an extra, is not installed")
    run_cells(small_cells(4), tmp_path / "out")
    texts = xr.Dataset({"word": ("place", ["α", "longer"])}, {"place": ["here", "there"]}, {"sizes": [1, 2], "of": "α"})
    store.write(texts.assign(whole=("place", np.int8([1, 2]))), tmp_path / "out" / "texts.nc")
    whole, target = fga.open_results(tmp_path / "out"), tmp_path / "new" / "results.zarr"
    assert fga.export(tmp_path / "out", target) == target
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    with xr.open_datatree(target, engine="zarr") as one:
        assert {node.path for node in one.subtree} == {node.path for node in whole.subtree}
        for node in whole.subtree:
            assert one[node.path].to_dataset().load().identical(node.to_dataset())
    name = small_cells(1)[0].name
    with xr.open_datatree(target, engine="zarr") as one:
        (target / name / "value" / "0").unlink()
        assert one[name]["value"].isnull().all()  # What a store has for numbers that are not there.
    with pytest.raises(ValueError, match=r"results\.zarr is there already: give another target"):
        fga.export(tmp_path / "out", target)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file/results\.zarr cannot be written: (not a directory|file exists)"):
        fga.export(tmp_path / "out", tmp_path / "file" / "results.zarr")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("results.csv", r"target must end in \.nc or \.zarr, got 'results\.csv'"),
        ("out/results.nc", "target must lie outside of .*out, where it would count as one of the results"),
        ("results.zarr", "a Zarr store is written by the package zarr, which is not installed: pip install"),
    ],
)
def test_an_export_elsewhere_is_refused(
    target: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=words):
        fga.export(tmp_path / "out", tmp_path / target)
    with pytest.raises(ValueError, match="target must be a path, got 3"):
        fga.export(tmp_path, 3)  # type: ignore[arg-type]
