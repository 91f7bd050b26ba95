"""The odd polynomials of the Newton–Schulz upstream guess: a step of singular values by matrix products alone.

    p(x) = a x + b x³ + c x⁵ + d x⁷,        p⁵(x) = p(p(p(p(p(x))))) ≈ 1[x > σ_k]  on 0 ≤ x ≤ 1

An odd polynomial of a matrix J = U S Vᵀ acts on its singular values, p(J) = U p(S) Vᵀ, and needs no decomposition:
p(J) = (a + bG + cG² + dG³) J with G = J Jᵀ. One polynomial for each threshold σ_k ∈ {0.1, …, 0.9}, in units of ‖J‖₂.
Source: Wang, Markou, Campbell 2025 (arXiv 2511.03110) for the degree and the thresholds; that p is composed five times,
as is usual for Newton–Schulz iterations, is our choice, and the coefficients are our own fit.
Singular values at least 0.05 above σ_k are mapped to between 0.94 and 1.13, and those at least 0.05 below it to within
±0.2. So p⁵(J) is only nearly orthogonal, in contrast to the matrix of the orthogonal guess.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COMPOSITIONS = 5
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COEFFICIENTS = (
    (1.290343, 2.635721, -5.432365, 2.487830),
    (0.948711, 4.011131, -7.199281, 3.201364),
    (0.633733, 5.088971, -8.408122, 3.646016),
    (0.220894, 6.336198, -9.602054, 4.020311),
    (-0.413370, 8.217270, -11.404165, 4.589237),
    (-0.650018, 7.408424, -9.052316, 3.298167),
    (-0.617439, 5.573108, -5.338950, 1.386251),
    (-0.482262, 3.041935, -0.387354, -1.190639),
    (0.171106, -3.672163, 11.364684, -6.879059),
)  # (a, b, c, d) of each threshold. To fit them again: [fit(threshold) for threshold in THRESHOLDS], rounded to 1e-6.


def nearest(relative: Tensor) -> Tensor:
    """The coefficients (example, 4) of the threshold nearest to each σ_k/σ_1 in `relative` (example,)."""
    table = torch.tensor(COEFFICIENTS, dtype=relative.dtype, device=relative.device)
    thresholds = torch.tensor(THRESHOLDS, dtype=relative.dtype, device=relative.device)
    return table[(relative[:, None] - thresholds).abs().argmin(1)]


def apply(coefficients: Tensor, matrices: Tensor) -> Tensor:
    """p⁵ of every matrix: coefficients (example, 4), matrices (example, row, column) of spectral norm 1, shape kept.

    Four batched products a composition, three of them on the smaller side, min(row, column).
    """
    if matrices.shape[1] > matrices.shape[2]:
        return apply(coefficients, matrices.mT).mT
    a, b, c, d = coefficients[:, :, None, None].unbind(1)
    for _ in range(COMPOSITIONS):
        gram = matrices @ matrices.mT
        cubic = d * gram
        cubic.diagonal(dim1=1, dim2=2).add_(c[:, :, 0])
        polynomial = torch.baddbmm(b * gram, gram @ gram, cubic)
        polynomial.diagonal(dim1=1, dim2=2).add_(a[:, :, 0])
        matrices = polynomial @ matrices
    return matrices


def fit(threshold: float) -> NDArray[np.float64]:
    """The coefficients (4,) whose p⁵ is nearest in mean square to the step at `threshold`.

    Least squares over [0, 1.01], a little beyond 1 because a spectral norm is itself an estimate. It starts from the
    best of a family that has its fixed points where they belong (0, threshold, 1) and is flat at 1:
    x + α x (x² − threshold²)(1 − x²)(1 + βx²).

    Raises ValueError for a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
    from scipy.optimize import least_squares

    points = np.linspace(0.0, 1.01, 1011)
    step = np.where(np.isclose(points, threshold), 0.5, points > threshold)

    def residuals(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        return _composed(coefficients, points)[0] - step

    def derivatives(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        return _composed(coefficients, points)[1]

    starts = [_start(threshold, alpha) for alpha in np.geomspace(0.3, 30.0, 41)]
    bounded = [start for start in starts if np.abs(points * (_even_powers(points) @ start)).max() <= points[-1]]
    best = min(bounded, key=lambda start: float(np.square(residuals(start)).sum()))
    return least_squares(residuals, best, derivatives, method="lm", ftol=1e-14, xtol=1e-14, gtol=1e-14).x


def _composed(
    coefficients: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """p⁵(values) and its derivatives (value, 4) by the coefficients."""
    derivatives = np.zeros((len(values), 4))
    for _ in range(COMPOSITIONS):
        even = _even_powers(values)
        slopes = (even * [1, 3, 5, 7]) @ coefficients
        powers = values[:, None] * even
        derivatives = powers + slopes[:, None] * derivatives
        values = powers @ coefficients
    return values, derivatives


def _even_powers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1, x², x⁴ and x⁶, (value, 4)."""
    return np.vander(values**2, 4, increasing=True)


def _start(threshold: float, alpha: float) -> NDArray[np.float64]:
    """Coefficients with fixed points 0, threshold and 1, slope 0 at 1 and slope 1 − alpha·threshold² at 0."""
    beta = 1 / (2 * alpha * (1 - threshold**2)) - 1
    return np.array(
        [
            1 - alpha * threshold**2,
            alpha * (1 + threshold**2 * (1 - beta)),
            alpha * (beta * (1 + threshold**2) - 1),
            -alpha * beta,
        ]
    )
