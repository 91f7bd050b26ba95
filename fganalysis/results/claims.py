"""The right to compute a cell, of one process at a time: two that work on one folder share its cells.

A claim is a file beside the cell's that its holder has locked. The operating system drops the lock with the process,
however that ends, so the claim of a dead process lapses at once. Where a file system has no locks, the file holds a
random name, and its holder touches it every few seconds; one that has stayed untouched for a minute has lapsed. Names
are random, because two containers have the same process numbers.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from fganalysis.results.store import TEMPORARY, reason

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None  # type: ignore[assignment]

BEAT = 5.0  # Seconds between two touches.
LAPSE = 60.0  # Seconds without a touch after which the holder counts as dead.
CLAIM = re.compile(r"\.(.+)\.(?:claim|holder)")
_untouched: dict[Path, tuple[int, float]] = {}  # Time of the last touch, and since when this process has seen it.


@dataclass
class Claim:
    """A claim that this process holds until it is released."""

    file: Path
    descriptor: int | None = None
    token: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Gives the claim up and removes its file."""
        if self.released.is_set():
            return
        self.released.set()
        with contextlib.suppress(OSError):
            if self.descriptor is not None or self.file.read_text() == self.token:
                self.file.unlink()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _keep(self) -> None:
        while not self.released.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.file)


def take(path: Path) -> Claim | None:
    """The claim on the cell at ``path``; None where another process, or another part of this one, holds it.

    Raises:
        OSError: the cell's folder cannot be written to.
    """
    file = path.with_name(f".{path.name}.claim")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _locked(file)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}") from error


def sweep(folder: Path, cells: Collection[str]) -> None:
    """Removes what dead processes have left beside cells of these file names: temporary files and claims.

    A temporary file is that of a cell's writer, who holds its claim: without a holder it is left over.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return
    left = {found[1] for known in (TEMPORARY, CLAIM) for name in names if (found := known.fullmatch(name))}
    for name in sorted(left & set(cells)):
        with contextlib.suppress(OSError):  # In a folder that can only be read, nothing is removed.
            if (claim := take(folder / name)) is not None:
                remove_temporary(folder / name)
                claim.release()


def remove_temporary(path: Path) -> None:
    """Removes the temporary files of one cell, whose claim this process holds."""
    for file in list(path.parent.iterdir()):
        found = TEMPORARY.fullmatch(file.name)
        if found and found[1] == path.name:
            file.unlink(missing_ok=True)


def _locked(file: Path) -> Claim | None:
    while fcntl is not None:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed the file since it was opened: then the lock is on nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return Claim(file, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except OSError:  # A file system without locks.
            os.close(descriptor)
            file.unlink(missing_ok=True)
            break
        os.close(descriptor)
    return _touched(file.with_suffix(".holder"))


def _touched(file: Path) -> Claim | None:
    token = secrets.token_hex(16)
    with contextlib.suppress(FileNotFoundError):
        touched = file.stat().st_mtime_ns
        seen, since = _untouched.setdefault(file, (touched, time.monotonic()))
        if seen != touched:
            _untouched[file] = (touched, time.monotonic())
        if seen != touched or time.monotonic() - since < LAPSE:
            return None
        # By renaming, one process alone takes a lapsed claim away.
        taken = file.with_name(f"{file.name}.{token}")
        file.rename(taken)
        taken.unlink()
    _untouched.pop(file, None)
    try:
        with open(file, "x") as made:
            made.write(token)
    except FileExistsError:  # Another was quicker.
        return None
    claim = Claim(file, token=token)
    threading.Thread(target=claim._keep, daemon=True, name=f"claim on {file.name}").start()
    return claim
