"""Everything that a study has finished as one DataTree, a node a cell, and as one file to share.

A folder of ten thousand cells opens in seconds, because the files are only listed, and their ends read for the study
that they are of. A cell is read, and its checksum compared, when its node is first asked for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import NoReturn

import xarray as xr

from fganalysis.arguments import check_path
from fganalysis.results import store

FolderContents = dict[str, "Path | FolderContents"]
DATASET = "dataset"  # The setting that names what a study's networks are trained on.


def open_results(path: str | Path) -> xr.DataTree:
    """Every finished cell under a study's folder: one DataTree, a node a cell, named by its file without suffix.

    A path to a single file gives that file's tree. Cells in sub-folders become nested nodes. Each cell is read when its
    node is first asked for, and compared with the checksum that it carries, which is then in the node's
    ``encoding["checksum"]``; "none": it carries none. Folders and files whose names begin with a dot are left out.

    Raises:
        ValueError: no such path, no finished cell in it, a folder in it that cannot be read or changes meanwhile, cells
            of different studies or of different data, or cells that do not fit into one tree. A file that is damaged or
            no result: when it is read.
    """
    check_path("path", path)
    path = Path(path)
    files = _finished_cells(path)
    if len(files) == 1 and files[0].parent in (path, path.parent):
        return store.read(files[0])
    _refuse_mixed(path, files)
    places: FolderContents = {}
    for file in files:
        *folders, name = file.relative_to(path).with_suffix("").parts
        here = places
        for folder in folders:
            below = here.setdefault(folder, {})
            if not isinstance(below, dict):
                return _at_once(path, files)
            here = below
        if name in here:
            return _at_once(path, files)
        here[name] = file
    return _fill(xr.DataTree(), places)


def export(path: str | Path, target: str | Path) -> Path:
    """Writes every finished cell under a study's folder into one file, ``results.nc`` or ``results.zarr``, to share.

    Each group of it is a cell, with its attributes. Returns the target. `open_results` reads a netCDF file again, and
    ``xarray.open_datatree(target, engine="zarr")`` a Zarr store, whose arrays are read when they are asked for.

    Raises:
        ValueError: what `open_results` refuses; a target of another kind, or within the folder, where it would count as
            a cell; a Zarr store that is there already, or without the package zarr.
        OSError: a target that cannot be written.
    """
    check_path("target", target)
    path, target = Path(path), Path(target)
    if target.suffix not in (store.SUFFIX, ".zarr"):
        raise ValueError(f"target must end in {store.SUFFIX} or .zarr, got {target.name!r}")
    if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"target must lie outside of {path}, where it would count as one of the results: {target}")
    if target.suffix == ".zarr" and importlib.util.find_spec("zarr") is None:
        raise ValueError(
            "a Zarr store is written by the package zarr, which is not installed: pip install 'fganalysis[zarr]', or "
            "export to results.nc"
        )
    tree = open_results(path)
    if target.suffix == store.SUFFIX:
        return store.write(tree, target)
    if target.exists():
        raise ValueError(f"{target} is there already: give another target")
    unfinished = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        tree.to_zarr(unfinished, zarr_format=2)  # Its third format has no index of all groups, which opens many fast.
        unfinished.rename(target)
    except OSError as error:
        raise OSError(f"{target} cannot be written: {store.reason(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


class _Cells(MutableMapping[str, xr.DataTree]):
    """The children of a folder's node, each made when it is first asked for."""

    def __init__(self, node: xr.DataTree, places: FolderContents) -> None:
        self._node, self._places = node, places
        self._made: dict[str, xr.DataTree | None] = dict.fromkeys(places)

    def __getitem__(self, name: str) -> xr.DataTree:
        if self._made[name] is None:
            place = self._places[name]
            made = xr.DataTree() if isinstance(place, dict) else store.read(place)
            made._set_parent(self._node, name)  # Which puts it in its place here.
            if isinstance(place, dict):  # Only now: what is attached is looked through.
                _fill(made, place)
        node = self._made[name]
        assert node is not None
        return node

    def __setitem__(self, name: str, node: xr.DataTree) -> None:
        self._made[name] = node

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __contains__(self, name: object) -> bool:
        return name in self._made


def _fill(node: xr.DataTree, places: FolderContents) -> xr.DataTree:
    # xarray has no public way to a tree whose nodes are made when they are asked for; a test holds this one.
    node._children = _Cells(node, places)  # type: ignore[assignment]
    return node


def _at_once(path: Path, files: list[Path]) -> xr.DataTree:
    """The tree of a folder in which a file and a folder share a name, so that their nodes must fit together."""
    nodes: dict[str, xr.Dataset] = {}
    for file in files:
        name = "/".join(file.relative_to(path).with_suffix("").parts)
        for node in store.read(file).subtree:
            place = f"{name}{node.path}".rstrip("/")
            if place in nodes:
                raise ValueError(f"{file} and another file in {path} both have the node {place}: open them one by one")
            nodes[place] = node.to_dataset(inherit=False)
    try:
        return xr.DataTree.from_dict(nodes)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"the results in {path} do not fit into one tree, as those of different studies need not: "
            "open one of its folders or files"
        ) from error


def _refuse_mixed(path: Path, files: list[Path]) -> None:
    """Cells of several studies, or of one study on several data, are no study: some were left by an earlier run."""
    known: dict[str, tuple[object, Path]] = {}
    for file in files:
        for name, value in _facts(store.label_of(file)).items():
            before, first = known.setdefault(name, (value, file))
            if before != value:
                raise ValueError(
                    f"{path} holds results that are not of one study: {first.relative_to(path)} and "
                    f"{file.relative_to(path)} have another {name.replace('data of ', '')}; open one of its folders or "
                    "files"
                )


def _facts(identity: str) -> dict[str, object]:
    """What the cells of one study have in common; nothing of a file without identity, or with a damaged one."""
    try:
        known = json.loads(identity)
        facts = {"study": known["study"]}
        facts |= {f"data of {name}": digest for name, digest in known["data"].items()}
        return facts | {name: value for name, value in known["settings"].items() if name == DATASET}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _finished_cells(path: Path) -> list[Path]:
    """The files of all cells under a folder, sorted, or the path itself where it is a file."""

    def refuse(error: OSError) -> NoReturn:  # What cannot be read may hold results, so it is not left out.
        raise error

    try:
        if path.is_file():
            return [path]
        if not path.exists():
            raise ValueError(f"there is no result at {path}: run the study first")
        files = []
        for folder, below, names in os.walk(path, onerror=refuse):
            below[:] = [name for name in below if not name.startswith(".")]  # Where unfinished trainings are.
            files += [file for name in names if _is_cell(file := Path(folder) / name)]
    except OSError as error:
        place = "" if error.filename in (None, str(path)) else f" at {error.filename}"
        raise ValueError(
            f"{path} cannot be searched for results: {store.reason(error)}{place}; name a folder that holds results "
            "alone"
        ) from error
    if not files:
        raise ValueError(f"there is no finished result in {path}: run the study first")
    return sorted(files)


def _is_cell(file: Path) -> bool:
    return file.suffix == store.SUFFIX and not file.name.startswith(".") and file.is_file()
