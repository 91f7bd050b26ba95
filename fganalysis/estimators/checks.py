"""What the settings of several estimators are checked for."""

from __future__ import annotations

from typing import Literal


def check_rank(k: int | Literal["rank"], most: int) -> None:
    """Raises ValueError when k is above ``most``, the highest rank of any tap's and example's upstream Jacobian."""
    if k != "rank" and most < k:
        raise ValueError(f"k={k} is above the rank of every upstream Jacobian, at most {most} here")
