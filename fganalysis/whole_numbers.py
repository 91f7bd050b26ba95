"""What sizes, numbers and seeds are asked for: whole numbers."""

from __future__ import annotations

from numbers import Integral


def check_whole(name: str, value: object, least: int | None = 1) -> None:
    """Raises ValueError unless it is a whole number, of at least ``least`` unless that is None; True is none."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if whole is None or (least is not None and whole < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}, got {value!r}")
