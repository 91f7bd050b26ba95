"""Which scheduler of dask.distributed computes: local:N, an address, or a file that holds one."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from fganalysis.arguments import check_kind, described

LOCAL = re.compile(r"local:([1-9]\d{0,3})")
ADDRESS = re.compile(r"(?:tcp|tls)://\S+:\d{1,5}")
MOST_BYTES_OF_A_SCHEDULER_FILE = 2**24


def check_scheduler(name: str, value: object) -> None:
    """local:N, the address of a scheduler, or the path of a scheduler file that is there; and dask.distributed is too.

    Raises:
        ValueError: anything else, by the argument's name.
    """
    address_of(name, value)
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{name} needs dask.distributed, which is not installed: pip install 'fganalysis[distributed]', or leave "
            f"{name} out and use workers"
        ) from error


def address_of(name: str, value: object) -> str:
    """local:N as it is, or the address of a scheduler, from its file where it is one. Raises ValueError."""
    kinds = "local:N, tcp://host:port, tls://host:port or the path of a scheduler file"
    check_kind(name, value, str, kinds)
    text = str(value)
    if LOCAL.fullmatch(text) or ADDRESS.fullmatch(text):
        return text
    file = Path(text)
    there, known = False, None
    with contextlib.suppress(OSError, ValueError):  # Of names that no file can have, and of what is no JSON.
        there = bool(text.strip()) and file.is_file() and file.stat().st_size <= MOST_BYTES_OF_A_SCHEDULER_FILE
        known = json.loads(file.read_bytes()) if there else None
    if not there:
        raise ValueError(f"{name} must be {kinds}, got {described(text)}")
    address = known.get("address") if isinstance(known, dict) else None
    if not isinstance(address, str) or not ADDRESS.fullmatch(address):
        raise ValueError(f"{name} must be {kinds}, but {described(text)} is a file without a scheduler's address")
    return address
