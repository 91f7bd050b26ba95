"""Overlap of a gradient with a subspace, and angles between two subspaces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fganalysis.measuring.sound_arrays import (
    ArrayOrTensor,
    double,
    like,
    power_of_two,
    precision,
    same_batch,
    same_kind,
    same_units,
)
from fganalysis.measuring.subspace.equal_singular_values import last_span, spread_evenly
from fganalysis.measuring.subspace.singular_modes import Modes

ORTHONORMAL_TOLERANCE = 1e4  # in units of the basis' own machine precision


def overlap_curve(gradient: ArrayOrTensor, basis: ArrayOrTensor | Modes[ArrayOrTensor]) -> ArrayOrTensor:
    """k ↦ o_k² = ‖V_kᵀg‖²/‖g‖², the share of a gradient's square in the first k directions of a basis, (…, mode).

    gradient: (…, unit). basis: (…, unit, mode), orthonormal or zero columns in order; leading dimensions broadcast. For
    an array the columns are used in their order. For `Modes`, a k between equal singular values gives the expectation
    for a random basis of their span. It rises linearly through the span and does not depend on the given basis. If
    modes that may belong to the last span were left out, the curve is NaN inside this span. A zero gradient gives NaN.
    Raises ValueError for a basis that is not orthonormal to 1e4 times its precision.
    """
    basis_modes = basis if isinstance(basis, Modes) else None
    basis = basis.vectors if isinstance(basis, Modes) else basis
    vectors, columns = double(gradient, "gradient", 1), double(basis, "basis", 2)
    same_kind(gradient, basis)
    same_units(vectors.shape[-1], columns.shape[-2])
    same_batch(vectors.shape[:-1], columns.shape[:-2])
    _check_orthonormal(columns, precision(basis), zero_columns=True)
    vectors = vectors / power_of_two(vectors, 1)  # squares of tiny gradients underflow
    components = (vectors[..., None, :] @ columns)[..., 0, :].square()
    if basis_modes is not None:
        distinct, complete = torch.as_tensor(basis_modes.distinct), torch.as_tensor(basis_modes.complete)
        components = spread_evenly(components, distinct)
        components = components.masked_fill(last_span(distinct) & ~complete[..., None], math.nan)
    curve = components.cumsum(-1) / vectors.square().sum(-1, keepdim=True)
    return like(curve.clamp(max=1.0), gradient)


def principal_angles(first: ArrayOrTensor, second: ArrayOrTensor) -> ArrayOrTensor:
    """Principal angles in radians, the smallest first, between the spans of two orthonormal bases.

    first: (…, unit, k). second: (…, unit, m); leading dimensions broadcast. Result (…, min(k, m)). Angles below 45° are
    computed from their sines and others from their cosines, so that none loses digits. (SciPy 1.17 lists the largest
    first, and computes a small angle from its cosine if there is a large one: 1e-9 becomes 0.) Raises ValueError for a
    basis that is not orthonormal to 1e4 times its precision. Source: Björck and Golub 1973.
    """
    wide, narrow = double(first, "first", 2), double(second, "second", 2)
    same_kind(first, second)
    same_units(wide.shape[-2], narrow.shape[-2])
    same_batch(wide.shape[:-2], narrow.shape[:-2])
    for columns, basis in ((wide, first), (narrow, second)):
        _check_orthonormal(columns, precision(basis), zero_columns=False)
    if wide.shape[-1] < narrow.shape[-1]:
        wide, narrow = narrow, wide
    wide, narrow = torch.linalg.qr(wide)[0], torch.linalg.qr(narrow)[0]
    product = wide.mT @ narrow
    cosines = torch.linalg.svdvals(product).clamp(max=1.0)
    sines = torch.linalg.svdvals(narrow - wide @ product).flip(-1).clamp(max=1.0)
    return like(torch.where(cosines.square() >= 0.5, sines.asin(), cosines.acos()), first)


def _check_orthonormal(columns: Tensor, precision: float, zero_columns: bool) -> None:
    gram = columns.mT @ columns
    target = torch.eye(columns.shape[-1], dtype=gram.dtype, device=gram.device)
    if zero_columns:
        target = target * (columns != 0).any(-2)[..., None, :]
    if bool(((gram - target).abs() > ORTHONORMAL_TOLERANCE * precision).any()):
        raise ValueError("the columns of a basis must be orthonormal")
