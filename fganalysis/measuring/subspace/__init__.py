"""Subspaces of gradients: spectra, effective ranks, overlaps, principal angles. Arrays only.

Every function takes NumPy arrays or torch tensors of float32 or float64, on any device, all of one kind in one call; it
computes in double precision and returns double precision of the same kind, on the same device. A matrix is
(example, unit): gradients, inputs, or the next layer's units against this layer's for an upstream Jacobian; leading
dimensions are a batch of matrices. Its modes are its right singular vectors, in descending order of singular values.
Multiplying an array by a constant changes no share, rank, overlap or angle.

Singular vectors are determined up to their signs, and those of equal singular values are an arbitrary basis of their
span. No function here returns a number that depends on the basis that a library chose: `Modes.leading` refuses a part
of such a span, and `overlap_curve` gives the mean over all its bases.

A high overlap of the gradient with a dominant subspace is not evidence that descent within it works (Song et al. 2025).
Every overlap must be compared with that of a random subspace: `random_overlap`, `random_alignment`; `random_srank` is
the rank of a random matrix.

Raises ValueError throughout for other data types, masked arrays, mixed kinds, empty arrays, NaN or infinite entries,
shapes that do not fit each other, and results that leave the range of a double.
"""

from __future__ import annotations

from fganalysis.measuring.subspace.effective_ranks import (
    energy_curve,
    entropy_rank,
    modes_for_energy,
    participation_ratio,
    srank,
    stable_rank,
)
from fganalysis.measuring.subspace.overlaps import overlap_curve, principal_angles
from fganalysis.measuring.subspace.random_subspaces import random_alignment, random_overlap, random_srank
from fganalysis.measuring.subspace.randomised_range import RandomisedModes, randomised_modes
from fganalysis.measuring.subspace.singular_modes import Modes, modes, singular_values

__all__ = [
    "Modes",
    "RandomValue",
    "RandomisedModes",
    "energy_curve",
    "entropy_rank",
    "modes",
    "modes_for_energy",
    "overlap_curve",
    "participation_ratio",
    "principal_angles",
    "random_alignment",
    "random_overlap",
    "random_srank",
    "randomised_modes",
    "singular_values",
    "srank",
    "stable_rank",
]
