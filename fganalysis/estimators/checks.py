"""What the settings of several estimators are checked for."""

from __future__ import annotations

from numbers import Integral
from typing import Literal


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raises ValueError unless the setting is a whole number of at least ``least``; True and False are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_rank(k: int | Literal["rank"], most: int) -> None:
    """Raises ValueError when k is above ``most``, the highest rank of any tap's and example's upstream Jacobian."""
    if k != "rank" and most < k:
        raise ValueError(f"k={k} is above the rank of every upstream Jacobian, at most {most} here")
