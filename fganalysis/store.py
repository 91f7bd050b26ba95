"""Results on disk: one cell a file, written atomically, with provenance; opened as one DataTree.

A cell is whatever one unit of work produces. A file appears under its name only when it is complete (temporary name,
fsync, rename), so a killed study loses the cell in flight and nothing else, and a second run skips what is there.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import xarray as xr

SUFFIX = ".nc"


@cache
def provenance() -> dict[str, str]:
    """Who made a result: versions of what matters, and the git commit of the code where it runs from a clone."""
    here = Path(__file__).resolve().parent
    commit = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "torch", "xarray")}
    return {
        "creation_library": "fganalysis",
        "creation_library_version": metadata.version("fganalysis"),
        "git_commit": commit.stdout.strip() if commit.returncode == 0 else "unknown",
        "versions": json.dumps({"python": platform.python_version(), **versions}),
    }


def write(result: xr.Dataset | xr.DataTree, path: Path) -> Path:
    """Writes a result to ``path`` as netCDF4, whole or not at all, with provenance in its attributes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = result if isinstance(result, xr.DataTree) else xr.DataTree(result)
    # Without the encodings of the files that parts were read from: theirs cut longer strings to the length they had.
    parts = {node.path: node.to_dataset(inherit=False).drop_encoding() for node in tree.subtree}
    tree = xr.DataTree.from_dict(parts, name=tree.name)
    tree.attrs = dict(tree.attrs) | provenance() | {"created_at": datetime.now(UTC).isoformat(timespec="seconds")}
    encoding = {
        node.path: {
            str(name): {"zlib": True, "complevel": 4}
            for name, array in node.data_vars.items()
            if array.ndim and array.dtype.kind in "fiu"
        }
        for node in tree.subtree
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tree.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: Path) -> xr.DataTree:
    """One cell, loaded and closed.

    Raises:
        ValueError: a file that is not there or does not open, naming it.
    """
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    except FileNotFoundError as error:
        raise ValueError(f"there is no result at {path}") from error
    except OSError as error:
        raise ValueError(f"{path} is not a readable netCDF4 result: delete it and run the study again") from error


def open_results(path: str | Path) -> xr.DataTree:
    """Every finished cell under a study's folder: one DataTree, a node a cell, named by its file without suffix.

    A path to a single file gives that file's tree. Cells in sub-folders become nested nodes.

    Raises:
        ValueError: no such path, or no finished cell in it.
    """
    path = Path(path)
    if path.is_file():
        return read(path)
    files = sorted(file for file in path.rglob(f"*{SUFFIX}") if not file.name.startswith("."))
    if not files:
        raise ValueError(f"there is no finished result in {path}: run the study first")
    if len(files) == 1 and files[0].parent == path:
        return read(files[0])
    nodes: dict[str, xr.Dataset] = {}
    for file in files:
        name = "/".join(file.relative_to(path).with_suffix("").parts)
        for node in read(file).subtree:
            nodes[f"{name}{node.path}".rstrip("/")] = node.to_dataset(inherit=False)
    return xr.DataTree.from_dict(nodes)
