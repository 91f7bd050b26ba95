"""Squared cosines that keep the cosine's sign."""

from __future__ import annotations

from typing import Any

import numpy as np


def signed_root(squares: Any) -> Any:
    """sign(x)·√|x| of an array, labelled or not: the cosine from its square with its sign."""
    return np.sign(squares) * np.sqrt(np.abs(squares))
