"""The leading modes of a large matrix by a randomised range finder, with bounds on their error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic

import torch

from fganalysis.arguments import check_seed, check_whole
from fganalysis.measuring.sound_arrays import ArrayOrTensor, double, in_range, like, power_of_two, precision
from fganalysis.measuring.subspace.equal_singular_values import rounding_gap
from fganalysis.measuring.subspace.singular_modes import Modes, kept_modes

MOST_POWER_ITERATIONS = 1000  # two are enough; a mistyped number would run for ever


@dataclass(frozen=True, eq=False)
class RandomisedModes(Generic[ArrayOrTensor]):
    """k leading modes of a large matrix A, with bounds of their errors.

    Vectors depend on the start, by about their error over the distance of their singular value to the next. If singular
    values are closer than their errors, the vectors are an arbitrary basis of their span. `modes.leading(k)` refuses k
    if values k and k + 1 of the sketch are equal, and without oversampling if value k is not above the remainder.

    Attributes:
        modes: values (mode,) and vectors (unit, mode).
        error: the residual ‖Aᵀu − σv‖/√2, (mode,). Some exact singular value differs from σ by at most this error.
        remainder: ‖A − AQQᵀ‖_F for the sketched range Q. It bounds what missed modes can add:
            values_i² ≤ σ_i² ≤ values_i² + remainder².
    """

    modes: Modes[ArrayOrTensor]
    error: ArrayOrTensor
    remainder: float


def randomised_modes(
    matrix: ArrayOrTensor, k: int, *, seed: int, oversampling: int = 10, power_iterations: int = 2
) -> RandomisedModes[ArrayOrTensor]:
    """The k leading modes of one large matrix (example, unit) by a randomised range finder with power iterations.

    The start is Gaussian, drawn on the CPU from ``seed``. The bounds of `RandomisedModes` hold for every start; only
    their tightness is random. Raises ValueError for k outside 1 … min(example, unit). Source: Halko, Martinsson and
    Tropp 2011.
    """
    rows = double(matrix, "matrix", 2)
    if rows.ndim != 2:
        raise ValueError(f"matrix must be (example, unit), got the shape {tuple(rows.shape)}")
    check_whole("k", k, None)
    check_seed("seed", seed)
    check_whole("oversampling", oversampling, 0)
    check_whole("power_iterations", power_iterations, 0, MOST_POWER_ITERATIONS)
    if not 1 <= k <= min(rows.shape):
        raise ValueError(f"k must be between 1 and {min(rows.shape)}, the smaller side of the matrix, got {k}")
    scale = power_of_two(rows, 2)
    rows, scale = rows / scale, scale[0, 0]
    shape = (rows.shape[0], min(k + oversampling, *rows.shape))
    start = torch.randn(shape, generator=torch.Generator().manual_seed(int(seed)), dtype=torch.float64, device="cpu")
    basis = torch.linalg.qr(rows.mT @ start.to(rows.device))[0]
    for _ in range(power_iterations):
        basis = torch.linalg.qr(rows.mT @ torch.linalg.qr(rows @ basis)[0])[0]
    image = rows @ basis
    left, sketched, inner = torch.linalg.svd(image, full_matrices=False)
    left, values, right = left[:, :k], sketched[:k], (basis @ inner.mT)[:, :k]
    error = torch.linalg.vector_norm(rows.mT @ left - right * values, dim=0) / math.sqrt(2)
    remainder = torch.linalg.matrix_norm(rows - image @ basis.mT)
    values, error, remainder = (in_range(part * scale, "singular values") for part in (values, error, remainder))
    beyond = 0.0 if k == min(rows.shape) else float(sketched[k] * scale if k < len(sketched) else remainder)
    zero, gap = max(rows.shape) * precision(matrix), rounding_gap(min(rows.shape), precision(matrix))
    return RandomisedModes(kept_modes(values, right, zero, gap, matrix, beyond), like(error, matrix), float(remainder))
