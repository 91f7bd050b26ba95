"""Orthonormal bases, matrices of a known spectrum, and the effective ranks that are asked of them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from fganalysis.measuring import subspace

Floats = NDArray[np.float64]
RANK_MEASURES = (subspace.stable_rank, subspace.entropy_rank, subspace.participation_ratio)
seeds = st.integers(0, 2**32 - 1)


def orthonormal(rng: np.random.Generator, unit: int, k: int) -> Floats:
    return np.linalg.qr(rng.normal(size=(unit, k)))[0]


def with_spectrum(rng: np.random.Generator, example: int, unit: int, values: Floats) -> tuple[Floats, Floats]:
    """A matrix with the given singular values, and its right singular vectors (unit, mode)."""
    left, right = orthonormal(rng, example, len(values)), orthonormal(rng, unit, len(values))
    return (left * values) @ right.T, right
