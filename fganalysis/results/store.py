"""Results on disk: one cell a file, whole or not there, with provenance and a checksum; opened as one DataTree.

A cell is the result of one unit of work. It becomes netCDF4 in memory, and its bytes are written to a temporary file
(fsync, rename). So a killed study or a full disk loses only the cell that is being written; when HDF5 wrote files
itself, a full disk was a segmentation fault. The SHA-256 of the netCDF bytes follows them in the file, where HDF5 does
not read. It is compared before a file is opened, because HDF5 reads wrong values from some damaged files and fails on
others in its own words. Files without a checksum, of older versions or other programs, are read too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import secrets
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, NoReturn

import xarray as xr

from fganalysis.arguments import check_kind, check_path

try:
    import fcntl
except ImportError:  # Not on Windows, where a locked file does not open at all.
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".nc"
SET_ASIDE = ".damaged"
SIGNATURE = b"\x89HDF\r\n\x1a\n"
SEAL = re.compile(rb"\nfganalysis sha256 ([0-9a-f]{64})\n\Z")
SEAL_LENGTH = len(b"\nfganalysis sha256 ") + 64 + 1
NO_CHECKSUM = "none"
ABANDONED = 3600.0  # Seconds until a temporary file of the cell counts as abandoned.


class Damaged(ValueError):
    """A file whose content is not that of a result. A file that cannot be opened raises a plain ValueError instead."""


@cache
def provenance() -> dict[str, str]:
    """The origin of a result: versions of the libraries, and the git commit of the code if it runs from a clone."""
    versions = {name: _version(name) for name in ("numpy", "scipy", "torch", "xarray")}
    return {
        "creation_library": "fganalysis",
        "creation_library_version": _version("fganalysis"),
        "git_commit": _commit(Path(__file__).resolve()),
        "versions": json.dumps({"python": platform.python_version(), **versions}),
    }


def write(result: xr.Dataset | xr.DataTree, path: Path) -> Path:
    """Writes a result to ``path`` as netCDF4 with provenance in its attributes and a checksum at its end.

    Raises:
        ValueError: what netCDF cannot hold.
        OSError: a file that cannot be written, naming it and why; an earlier file of its name is still there.
    """
    check_path("path", path)
    check_kind("result", result, (xr.Dataset, xr.DataTree), "an xarray Dataset or DataTree")
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
    try:
        content = bytes(tree.to_netcdf(None, engine="h5netcdf", encoding=encoding))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the result for {path} cannot be stored: netCDF holds arrays of numbers or texts, and attributes that are "
            "numbers up to 2**64, texts or lists of them"
        ) from error
    return write_bytes(content + f"\nfganalysis sha256 {hashlib.sha256(content).hexdigest()}\n".encode(), Path(path))


def write_bytes(content: bytes, path: Path) -> Path:
    """Writes a file completely or not at all, and removes temporary files of killed runs.

    Raises:
        OSError: a file that cannot be written, naming it and why.
    """
    # Random: process numbers are the same on several machines that share a folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _remove_abandoned(path, temporary.stat().st_mtime)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {_reason(error)}") from error
    return path


def read(path: Path) -> xr.DataTree:
    """One cell, loaded and closed; ``encoding["checksum"]`` is its SHA-256, or "none" where the file carries none.

    Raises:
        Damaged: bytes that are not those that were written, or that are no netCDF4.
        ValueError: a file that is not there, is locked or cannot be read.
    """
    check_path("path", path)
    content, checksum = _content(Path(path))
    try:
        with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as opened:
            tree = opened.load()
    except Exception as error:  # HDF5, h5py, h5netcdf and xarray have all raised here, each something else.
        _refuse_unread(Path(path), content, checksum, error)
    tree.encoding["checksum"] = checksum
    return tree


def attributes(path: Path) -> dict[str, object]:
    """The attributes of one cell's root; checks all bytes, as `read`, and is quicker where there are many groups.

    Raises:
        Damaged, ValueError: as `read`.
    """
    content, checksum = _content(path)
    if checksum == NO_CHECKSUM:
        return {str(name): value for name, value in read(path).attrs.items()}
    try:
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as root:
            return {str(name): value for name, value in root.attrs.items()}
    except Exception as error:
        _refuse_unread(path, content, checksum, error)


def set_aside(path: Path) -> Path:
    """Renames a damaged file, so that its name is free and nothing is lost. Returns the new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}{SET_ASIDE}{f'-{number}' if number > 1 else ''}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise OSError(f"{path} is damaged and cannot be renamed: {_reason(error)}") from error
    return aside


def open_results(path: str | Path) -> xr.DataTree:
    """Every finished cell under a study's folder: one DataTree, a node a cell, named by its file without suffix.

    A path to a single file gives that file's tree. Cells in sub-folders become nested nodes. Each file is compared with
    the checksum that it carries, which is then in its node's ``encoding["checksum"]``; "none": it carries none.

    Raises:
        ValueError: no such path, no finished cell in it, a folder in it that cannot be read or changes meanwhile, a
            file that is damaged or no result, or cells that do not fit into one tree.
    """
    check_path("path", path)
    path = Path(path)
    files = _finished_cells(path)
    if len(files) == 1 and files[0].parent in (path, path.parent):
        return read(files[0])
    nodes: dict[str, xr.Dataset] = {}
    for file in files:
        name = "/".join(file.relative_to(path).with_suffix("").parts)
        for node in read(file).subtree:
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


def _finished_cells(path: Path) -> list[Path]:
    """The files of all cells under a folder, sorted, or the path itself where it is a file."""

    def refuse(error: OSError) -> NoReturn:  # What cannot be read may hold results, so it is not left out.
        raise error

    try:
        if path.is_file():
            return [path]
        if not path.exists():
            raise ValueError(f"there is no result at {path}: run the study first")
        paths = [Path(folder) / name for folder, _, names in os.walk(path, onerror=refuse) for name in names]
        files = sorted(file for file in paths if _is_cell(file))
    except OSError as error:
        place = "" if error.filename in (None, str(path)) else f" at {error.filename}"
        raise ValueError(
            f"{path} cannot be searched for results: {_reason(error)}{place}; name a folder that holds results alone"
        ) from error
    if not files:
        raise ValueError(f"there is no finished result in {path}: run the study first")
    return files


def _is_cell(file: Path) -> bool:
    return file.suffix == SUFFIX and not file.name.startswith(".") and file.is_file()


def _content(path: Path) -> tuple[bytes, str]:
    """The netCDF bytes of a file and their checksum, or "none" where the file carries none."""
    try:
        with open(path, "rb") as file:
            _refuse_locked(file)
            content = file.read()
    except FileNotFoundError as error:
        raise ValueError(f"there is no result at {path}") from error
    except BlockingIOError as error:
        raise ValueError(f"{path} is being written by another program, which has locked it: try again later") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {_reason(error)}") from error
    seal = SEAL.search(content, max(0, len(content) - SEAL_LENGTH))
    if seal is None:
        return content, NO_CHECKSUM
    content, checksum = content[: seal.start()], seal[1].decode()
    if hashlib.sha256(content).hexdigest() != checksum:
        raise Damaged(f"{path} is damaged: its bytes are not those that were written, by its checksum")
    return content, checksum


def _refuse_locked(file: IO[bytes]) -> None:
    """Raises BlockingIOError where another process has the file open for writing, as its bytes may be incomplete."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # A file system without locks.
            pass


def _refuse_unread(path: Path, content: bytes, checksum: str, error: Exception) -> NoReturn:
    """What a file is that does not open: whole by its checksum, damaged, or something else."""
    if checksum != NO_CHECKSUM:
        raise ValueError(
            f"{path} is whole, by its checksum, but the installed xarray {_version('xarray')} and h5netcdf "
            f"{_version('h5netcdf')} do not read it"
        ) from error
    if SIGNATURE not in content[:8]:
        raise Damaged(f"{path} is not a readable netCDF4 result: another kind of file, or a damaged one") from error
    raise Damaged(f"{path} is not a readable netCDF4 result: it is damaged or cut short") from error


def _remove_abandoned(path: Path, now: float) -> None:
    """``now``: the file system's clock, which may not be this machine's."""
    temporary = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{16}\.part")
    with contextlib.suppress(OSError):
        for file in path.parent.iterdir():
            if temporary.fullmatch(file.name) and now - file.stat().st_mtime > ABANDONED:
                file.unlink()


def _commit(source: Path) -> str:
    """The commit of the repository that tracks ``source``: a folder of installed packages may lie in the user's own."""
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return "unknown"
    return _git(source.parent, "describe", "--always", "--dirty", "--abbrev=40") or "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git; None where git fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # Run from a clone that is not installed.
        return "unknown"


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
