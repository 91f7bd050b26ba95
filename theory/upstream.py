"""The factors A of the upstream family, y = A ε with ε ∈ R^{next_unit}, from J_b = W diag(d_b) = U S Vᵀ.

    upstream         A = Jᵀ                           W̃ᵀ, Singhal et al. 2023
    orthogonal       A = V_k U_kᵀ                     W̃⊥, Wang et al. 2025
    newton_schulz    A = p^N(J/‖J‖₂)ᵀ                 W̃⊥-NS, Wang et al. 2025
    preconditioned   A = (J_σᵀJ_σ)^(−½) J_σᵀ          W̃^P, Wang et al. 2025: V Uᵀ of the nonzero singular values

W: (next_unit, unit), the next tap's weight without a bias column. d: (example, unit), φ' at this tap. The output tap
has no upstream Jacobian; its factor is Diagonal(ones). For Gaussian noise only Σ = A Aᵀ counts; for any other law A
does. All take and give float64 and raise ValueError where W and d do not fit together.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from theory.factors import Array, Dense, LowRank, Masked

DOUBLE = float(np.finfo(np.float64).eps)
LEAST_GAP = 1e-10  # relative to the largest singular value: those closer are equal in double precision too


def upstream(weight: Array, derivative: Array) -> Masked:
    """A = Jᵀ = diag(d) Wᵀ."""
    return Masked(derivative, weight)


def orthogonal(
    weight: Array,
    derivative: Array,
    k: int | Literal["rank"],
    which: Literal["top", "bottom"] = "top",
    epsilon: float = DOUBLE,
    triplets: tuple[Array, Array, Array] | None = None,
) -> LowRank:
    """A = V_k U_kᵀ, the k largest ("top") or the k smallest nonzero ("bottom") singular values made 1, the others 0.

    An example whose Jacobian has a lower rank than k has that many directions and columns of zeros. Singular values up
    to max(next_unit, unit)·epsilon·σ_1 count as zero, as in numpy.linalg.matrix_rank; give the epsilon of the precision
    that W and d were computed in. Where a k takes some of several equal singular values, J does not determine V_k: it
    is then the library's choice, and `undetermined` says of which examples. triplets: those of `singular_triplets`, if
    they are at hand. Raises ValueError for k below 1 and an unknown ``which``.
    """
    if k != "rank" and k < 1:
        raise ValueError(f"k must be at least 1 or 'rank', got {k}")
    if which not in ("top", "bottom"):
        raise ValueError(f"which must be 'top' or 'bottom', got {which!r}")
    left, values, right = singular_triplets(weight, derivative) if triplets is None else triplets
    ranks = np.sum(values > max(weight.shape) * epsilon * values[:, :1], axis=1)
    n_modes = max(1, int(ranks.max()) if k == "rank" else min(k, values.shape[1]))
    first = np.maximum(ranks - n_modes, 0) if which == "bottom" else np.zeros_like(ranks)
    modes = first[:, None] + np.arange(n_modes)
    kept = modes < ranks[:, None]
    index = np.minimum(modes, values.shape[1] - 1)[:, None, :]
    kept_columns = kept[:, None, :].astype(np.float64)
    return LowRank(
        np.take_along_axis(right, index, axis=2) * kept_columns, np.take_along_axis(left, index, axis=2) * kept_columns
    )


def undetermined(
    values: Array,
    sides: tuple[int, ...],
    k: int | Literal["rank"],
    which: Literal["top", "bottom"] = "top",
    epsilon: float = DOUBLE,
) -> NDArray[np.bool_]:
    """For which examples J does not determine the k directions of `orthogonal`, (example,).

    This is so where a singular value that is taken equals one that is left out: any basis of their common span would
    do. An orthogonal weight has only equal singular values. Values count as equal up to 10 epsilon σ_1 apart.

    values: (example, mode), in descending order. sides: (next_unit, unit). The others are those of `orthogonal`.
    """
    if k == "rank" or k >= values.shape[1]:
        return np.zeros(len(values), bool)
    ranks = np.sum(values > max(sides) * epsilon * values[:, :1], axis=1)
    inside = k < ranks
    last = np.where(inside, ranks - k if which == "bottom" else k, 1)[:, None]  # how many lie above the cut
    above, below = (np.take_along_axis(values, index, axis=1)[:, 0] for index in (last - 1, last))
    tied: NDArray[np.bool_] = inside & (above - below <= max(10 * epsilon, LEAST_GAP) * values[:, 0])
    return tied


def iterated(weight: Array, derivative: Array, k: int, iterations: int, oversampling: int) -> LowRank:
    """A = V_k U_kᵀ of J restricted to a subspace that subspace iteration finds, for `orthogonal` of k at the top.

        span (JᵀJ)^iterations diag(d) R,    R the k + oversampling leading right singular vectors of W

    Where W has no more rows than that, the span is the whole row space and nothing is iterated. Where singular values
    of W are equal on either side of the start's size, or those of J in the span on either side of k, the result is the
    library's choice (`undetermined`). Source: Halko, Martinsson & Tropp 2011, algorithm 4.4, but for the start. Raises
    ValueError for k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    _check(weight, derivative)
    size, n_modes = min(k + oversampling, *weight.shape), min(k, *weight.shape)
    start = np.linalg.svd(weight, full_matrices=False)[2][:size]
    (examples, units), next_units = derivative.shape, weight.shape[0]
    right, left = np.zeros((examples, units, n_modes)), np.zeros((examples, next_units, n_modes))
    for example, mask in enumerate(derivative):
        jacobian = weight * mask
        basis = _basis(start * mask)
        for _ in range(0 if size == next_units else iterations):
            basis = _basis(basis @ jacobian.T @ jacobian)
        u, s, v = np.linalg.svd(jacobian @ basis.T, full_matrices=False)
        kept = np.flatnonzero(s > max(weight.shape) * DOUBLE * s[:1])[:n_modes]
        left[example, :, : len(kept)], right[example, :, : len(kept)] = u[:, kept], basis.T @ v.T[:, kept]
    return LowRank(right, left)


def _basis(rows: Array) -> Array:
    """Orthonormal rows with the same span."""
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    return right[values > max(rows.shape) * DOUBLE * values[:1]]


def newton_schulz(weight: Array, derivative: Array, coefficients: Array) -> Dense:
    """A = V p^N(S/σ_1) Uᵀ: odd polynomials composed, the first row of coefficients first.

        p(x) = a_1 x + a_3 x³ + a_5 x⁵ + a_7 x⁷

    coefficients: (iteration, 4), or (example, iteration, 4) where each example has its own. A Jacobian of zeros gives
    zeros. Raises ValueError for coefficients of another shape.
    """
    examples = derivative.shape[0]
    if coefficients.shape[-1] != 4 or coefficients.ndim not in (2, 3):
        raise ValueError(
            f"coefficients must be (iteration, 4) or (example, iteration, 4), got the shape {coefficients.shape}"
        )
    each = np.broadcast_to(coefficients, (examples, *coefficients.shape[-2:]))
    left, values, right = singular_triplets(weight, derivative)
    norms = values[:, :1]
    mapped = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
    for step in range(each.shape[1]):
        a, b, c, d = (each[:, step, power, None] for power in range(4))
        square = mapped**2
        mapped = mapped * (a + square * (b + square * (c + square * d)))
    return Dense(np.matmul(right * mapped[:, None, :], left.transpose(0, 2, 1)))


def preconditioned(weight: Array, derivative: Array, sigma: float = 1e-5) -> LowRank:
    """A = (J_σᵀJ_σ)^(−½) J_σᵀ with J_σ = U (S² + σ)^½ Vᵀ, which is V Uᵀ for every σ > 0.

        J_σᵀJ_σ = V (S² + σ) Vᵀ   ⇒   A = V (S² + σ)^(−½) Vᵀ V (S² + σ)^½ Uᵀ = V Uᵀ

    U, S, V are of the nonzero singular values (as in `orthogonal`), and the inverse root is that on the range: A is the
    partial isometry of the polar decomposition, and `orthogonal` with k = "rank". Directions of zero singular values
    are dropped, as J does not determine them. A thin SVD lists some of them, paired as the library likes; kept, they
    would have singular value √σ in J_σ and 1 in A. A rule for A that a rotation Q of the units merely rotates,
    A(J Q) = Qᵀ A(J), cannot keep a null direction v: the reflection Q = I − 2 v vᵀ leaves J alone, so that A = Q A and
    vᵀA = 0. Unbiased all the same: g = Jᵀ g_next = V Vᵀ g, hence A Aᵀ g = g. Raises ValueError for σ ≤ 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    return orthogonal(weight, derivative, "rank")


def singular_triplets(weight: Array, derivative: Array) -> tuple[Array, Array, Array]:
    """Left (example, next_unit, mode), values (example, mode) in descending order and right (example, unit, mode).

    Units with d = 0 are columns of zeros and take no part in the decomposition: their modes, of singular value 0, are
    given as zeros. This is most of the time saved behind a ReLU.
    """
    _check(weight, derivative)
    (examples, units), next_units = derivative.shape, weight.shape[0]
    n_modes = min(weight.shape)
    left, right = np.zeros((examples, next_units, n_modes)), np.zeros((examples, units, n_modes))
    values = np.zeros((examples, n_modes))
    for example, mask in enumerate(derivative):
        (active,) = np.nonzero(mask)
        if len(active) == 0:
            continue
        u, s, v = np.linalg.svd(weight[:, active] * mask[active], full_matrices=False)
        left[example, :, : len(s)], values[example, : len(s)] = u, s
        right[example, active, : len(s)] = v.T
    return left, values, right


def _check(weight: Array, derivative: Array) -> None:
    if weight.ndim != 2 or derivative.ndim != 2 or weight.shape[1] != derivative.shape[1]:
        raise ValueError(
            "weight must be (next_unit, unit) and derivative (example, unit) with the same unit, "
            f"got {weight.shape} and {derivative.shape}"
        )
