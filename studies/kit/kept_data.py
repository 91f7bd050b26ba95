"""Datasets that cells read, each loaded once in a process however many of its cells read it.

The tensors are shared: cells must not change them in place.
"""

from __future__ import annotations

from functools import lru_cache

import fganalysis as fga
from fganalysis.training.datasets import Dataset

MOST_KEPT = 2


@lru_cache(maxsize=MOST_KEPT)
def load(name: str, *, images: bool = False) -> Dataset:
    """What `fganalysis.datasets.load` gives, which files and seeds determine."""
    return fga.datasets.load(name, images=images)
