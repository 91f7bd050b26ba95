"""A stored result with one byte changed, as by a failing disk."""

from __future__ import annotations

from pathlib import Path


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
