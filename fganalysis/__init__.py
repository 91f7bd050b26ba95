"""fganalysis measures gradient estimators: bias, variance and cosine with honest intervals, beside their theory."""

from __future__ import annotations

from fganalysis import datasets, estimators, networks, schema, testing
from fganalysis.sampling import sample
from fganalysis.snapshot import Snapshot, capture
from fganalysis.store import open_results
from fganalysis.training import estimate_gradient, train

__all__ = [
    "Snapshot",
    "capture",
    "datasets",
    "estimate_gradient",
    "estimators",
    "networks",
    "open_results",
    "sample",
    "schema",
    "testing",
    "train",
]
