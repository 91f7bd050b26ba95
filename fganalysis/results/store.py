"""Results on disk: one cell a file, whole or not there, with provenance, a checksum and, of a study, its identity.

A cell is the result of one unit of work. It becomes netCDF4 in memory, and its bytes are written to a temporary file
(fsync, rename). So a killed study or a full disk loses only the cell that is being written; when HDF5 wrote files
itself, a full disk was a segmentation fault. Behind the netCDF bytes, where HDF5 does not read, stand the identity of a
study's cell (a line of JSON, see `fganalysis.results.identity`) and the SHA-256 of everything before it. So one
checksum holds content and identity together, and both are read without HDF5. The checksum is compared before a file is
opened, because HDF5 reads wrong values from some damaged files and fails on others in its own words. Files without a
checksum, of older versions or other programs, are read too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import stat
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, NoReturn

import xarray as xr

from fganalysis.arguments import check_kind, check_path
from fganalysis.results.soundness import Unsound, check_sound

try:
    import fcntl
except ImportError:  # Not on Windows, where a locked file does not open at all.
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".nc"
DAMAGED = ".damaged"
SIGNATURE = b"\x89HDF\r\n\x1a\n"
SEAL = re.compile(rb"\nfganalysis sha256 ([0-9a-f]{64})\n\Z")
SEAL_LENGTH = len(b"\nfganalysis sha256 ") + 64 + 1
NO_CHECKSUM = "none"
IDENTITY = b"\nfganalysis cell "
OTHER_KIND = "{} is not a readable netCDF4 result: another kind of file, or a damaged one"
LONGEST_IDENTITY = 2**18  # Bytes at a file's end in which its identity is looked for.
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.part")
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
    return write_bytes(content_of(result, str(path)), Path(path))


def content_of(result: xr.Dataset | xr.DataTree, name: str, identity: str = "") -> bytes:
    """The bytes of a result's file, with its identity as a line of JSON where it is a study's cell.

    Raises:
        ValueError: what netCDF cannot hold; ``name`` says whose result it is.
    """
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
        content = _whole(bytes(tree.to_netcdf(None, engine="netcdf4", encoding=encoding)))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the result for {name} cannot be stored: netCDF holds arrays of numbers or texts, and attributes that are "
            "numbers up to 2**64, texts or lists of them"
        ) from error
    if identity:
        content += IDENTITY + identity.encode() + b"\n"
    return content + f"\nfganalysis sha256 {hashlib.sha256(content).hexdigest()}\n".encode()


def _whole(content: bytes) -> bytes:
    """A file made in memory without the zeros behind its end. HDF5 names the end at byte 28, in its superblock."""
    return content[: int.from_bytes(content[28:36], "little")] if content[8] in (2, 3) else content


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
        raise OSError(f"{path} cannot be written: {reason(error)}") from error
    return path


def read(path: Path) -> xr.DataTree:
    """One result, loaded and closed; ``encoding["checksum"]`` is its SHA-256, or "none" where the file carries none.

    Raises:
        Damaged: bytes that are not those that were written, or that are no netCDF4, or what no result holds.
        ValueError: a file that is not there, is locked or cannot be read.
    """
    check_path("path", path)
    content, _, checksum = _content(Path(path))
    return _opened(Path(path), content, checksum)


def read_cell(path: Path) -> tuple[xr.DataTree, str]:
    """One result and its identity, "" where it has none. Raises as `read`."""
    content, identity, checksum = _content(path)
    return _opened(path, content, checksum), identity


def identity_of(path: Path) -> str:
    """The identity of a cell, "" where it has none; all bytes are checked, and HDF5 is not asked. Raises as `read`."""
    return _content(path)[1]


def label_of(path: Path) -> str:
    """The same from the file's end alone, which is not checked: to tell a folder's cells apart before they are read.

    Raises:
        Damaged: a file that does not begin as netCDF4 does.
        ValueError: a file that cannot be read.
    """
    try:
        with _regular(path) as file:
            if SIGNATURE not in file.read(len(SIGNATURE)):
                raise Damaged(OTHER_KIND.format(path))
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LONGEST_IDENTITY))
            return _parted(file.read())[1]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error


def _opened(path: Path, content: bytes, checksum: str) -> xr.DataTree:
    try:
        check_sound(content)
        with xr.open_datatree(content, engine="netcdf4") as opened:
            tree = opened.load()
    except Unsound as error:
        raise Damaged(f"{path} is no result: {error}") from error
    except Exception as error:  # HDF5, h5py, netCDF4 and xarray have all raised here, each something else.
        _refuse_unread(path, content, checksum, error)
    tree.encoding["checksum"] = checksum
    return tree


def set_aside(path: Path, kind: str = DAMAGED) -> Path:
    """Renames a file that is not used, so that its name is free and nothing is lost. Returns the new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}{kind}{f'-{number}' if number > 1 else ''}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise OSError(f"{path} is not used and cannot be renamed: {reason(error)}") from error
    return aside


def _content(path: Path) -> tuple[bytes, str, str]:
    """The netCDF bytes of a file, its identity or "", and its checksum or "none"."""
    try:
        with _regular(path) as file:
            _refuse_locked(file)
            content = file.read()
    except FileNotFoundError as error:
        raise ValueError(f"there is no result at {path}") from error
    except BlockingIOError as error:
        raise ValueError(f"{path} is being written by another program, which has locked it: try again later") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    content, identity, checksum = _parted(content)
    whole = content if not identity else content + IDENTITY + identity.encode() + b"\n"
    if checksum != NO_CHECKSUM and hashlib.sha256(whole).hexdigest() != checksum:
        raise Damaged(f"{path} is damaged: its bytes are not those that were written, by its checksum")
    return content, identity, checksum


def _parted(content: bytes) -> tuple[bytes, str, str]:
    """Bytes before identity and checksum, and these. What has no checksum has no identity: nothing holds it there."""
    seal = SEAL.search(content, max(0, len(content) - SEAL_LENGTH))
    if seal is None:
        return content, "", NO_CHECKSUM
    content, checksum = content[: seal.start()], seal[1].decode()
    start = content.rfind(IDENTITY, max(0, len(content) - LONGEST_IDENTITY))
    if start < 0 or not content.endswith(b"}\n"):
        return content, "", checksum
    return content[:start], content[start + len(IDENTITY) : -1].decode(errors="replace"), checksum


def _regular(path: Path) -> IO[bytes]:
    """A file open for reading. Raises OSError for anything else: a pipe that nobody writes to would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


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
            f"{path} is whole, by its checksum, but the installed xarray {_version('xarray')} and netCDF4 "
            f"{_version('netCDF4')} do not read it"
        ) from error
    if SIGNATURE not in content[:8]:
        raise Damaged(OTHER_KIND.format(path)) from error
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


def reason(error: OSError) -> str:
    """What the operating system says, for the end of a sentence."""
    return (error.strerror or type(error).__name__).lower()
