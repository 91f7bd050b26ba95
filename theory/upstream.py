"""The factors A of the upstream family, y = A ε with ε ∈ R^{next_unit}, from J_b = W diag(d_b) = U S Vᵀ.

    upstream         A = Jᵀ                           W̃ᵀ, Singhal et al. 2023
    orthogonal       A = V_k U_kᵀ                     W̃⊥, Wang et al. 2025
    newton_schulz    A = p^N(J/‖J‖₂)ᵀ                 W̃⊥-NS, Wang et al. 2025
    preconditioned   A = (J_σᵀJ_σ)^(−½) J_σᵀ          W̃^P, Wang et al. 2025: V Uᵀ of the nonzero singular values

W: (next_unit, unit), the next tap's weight without a bias column. d: (example, unit), φ' at this tap. On networks other
than chains J is written out, and the functions that end in "of" take its singular triplets. A unit is then one of the
numbers of all rows of an example. An output tap has no upstream Jacobian; its factor is Diagonal(ones). With Gaussian
noise the guess depends on A only through Σ = A Aᵀ. All functions take and return float64, and raise ValueError where W
and d do not fit together.

Source: docs/mathematics.md#upstream-guesses.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from theory.factors import Array, Dense, LowRank, Masked

DOUBLE = float(np.finfo(np.float64).eps)
LEAST_GAP = 1e-10  # singular values closer than this share of the largest count as equal in double precision


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
    """A = V_k U_kᵀ: the k largest ("top") or smallest nonzero ("bottom") singular values become 1, all others 0.

    An example whose Jacobian has a rank r < k has r directions; the other columns are zero. If only some of several
    equal singular values are among the k, J does not determine V_k. It then depends on the SVD library, and
    `undetermined` gives the examples concerned.

    epsilon: the machine precision in which W and d were computed. Singular values up to
    max(next_unit, unit)·epsilon·σ_1 count as zero, as in numpy.linalg.matrix_rank. triplets: the result of
    `singular_triplets`, if it is known already.

    Raises ValueError for k below 1 and an unknown ``which``.
    """
    if k != "rank" and k < 1:
        raise ValueError(f"k must be at least 1 or 'rank', got {k}")
    if which not in ("top", "bottom"):
        raise ValueError(f"which must be 'top' or 'bottom', got {which!r}")
    found = singular_triplets(weight, derivative) if triplets is None else triplets
    return orthogonal_of(found, weight.shape, k, which, epsilon)


def orthogonal_of(
    triplets: tuple[Array, Array, Array],
    sides: tuple[int, ...],
    k: int | Literal["rank"],
    which: Literal["top", "bottom"] = "top",
    epsilon: float = DOUBLE,
) -> LowRank:
    """As `orthogonal`, of any Jacobians by their triplets. sides: numbers at the next tap and at this one."""
    left, values, right = triplets
    ranks = np.sum(values > max(sides) * epsilon * values[:, :1], axis=1)
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
    """Whether J leaves the k directions of `orthogonal` undetermined, (example,).

    This is so if a singular value among the k equals one that is not among them: every basis of their common span is
    then a valid choice. All singular values of an orthogonal weight are equal. Two values count as equal if they differ
    by at most 10 epsilon σ_1.

    values: (example, mode), in descending order. sides: (next_unit, unit). Other arguments as in `orthogonal`.
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
    """A = V_k U_kᵀ for J restricted to a subspace from subspace iteration: an approximation of `orthogonal`.

        span (JᵀJ)^iterations diag(d) R,    R the k + oversampling leading right singular vectors of W

    If W has at most k + oversampling rows, the span is the whole row space and no iteration is needed. The result
    depends on the SVD library if equal singular values lie on both sides of a cut: those of W at the size of R, or
    those of J in the span at k (`undetermined`).

    Source: Halko, Martinsson & Tropp 2011, algorithm 4.4, with another start. Raises ValueError for k below 1.
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
    """A = V p^N(S/σ_1) Uᵀ, where p^N applies N odd polynomials, one in each iteration:

        p(x) = a_1 x + a_3 x³ + a_5 x⁵ + a_7 x⁷

    coefficients: a_1, a_3, a_5, a_7 in the order of the iterations, (iteration, 4) for all examples or
    (example, iteration, 4). A Jacobian of zeros gives A = 0. Raises ValueError for coefficients of another shape.
    """
    return newton_schulz_of(singular_triplets(weight, derivative), coefficients)


def newton_schulz_of(triplets: tuple[Array, Array, Array], coefficients: Array) -> Dense:
    """As `newton_schulz`, of any Jacobians by their triplets."""
    left, values, right = triplets
    examples = len(values)
    if coefficients.shape[-1] != 4 or coefficients.ndim not in (2, 3):
        raise ValueError(
            f"coefficients must be (iteration, 4) or (example, iteration, 4), got the shape {coefficients.shape}"
        )
    each = np.broadcast_to(coefficients, (examples, *coefficients.shape[-2:]))
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

    U, S and V contain only the nonzero singular values, and the inverse root is taken on the range. So A is the partial
    isometry of the polar decomposition, and equals `orthogonal` with k = "rank". The guess is unbiased:
    g = Jᵀ g_next = V Vᵀ g, hence A Aᵀ g = g.

    **Why directions of zero singular values are dropped.** J does not determine them. A thin SVD lists some of them, in
    pairs that depend on the library; if they were kept, they would have singular value √σ in J_σ and 1 in A. No rule
    that is equivariant under rotations Q of the units, A(J Q) = Qᵀ A(J), can keep a null direction v: the reflection
    Q = I − 2 v vᵀ does not change J, so A = Q A and vᵀA = 0.

    Raises ValueError for σ ≤ 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    return orthogonal(weight, derivative, "rank")


def triplets_of(jacobians: Array) -> tuple[Array, Array, Array]:
    """As `singular_triplets`, of Jacobians written out, (example, next_unit, unit).

    Raises ValueError for an array of another number of dimensions.
    """
    if jacobians.ndim != 3:
        raise ValueError(f"jacobians must be (example, next_unit, unit), got {jacobians.shape}")
    left, values, right = np.linalg.svd(jacobians, full_matrices=False)
    return left, values, right.transpose(0, 2, 1)


def singular_triplets(weight: Array, derivative: Array) -> tuple[Array, Array, Array]:
    """The thin SVD of every example's J.

    Left singular vectors (example, next_unit, mode), values (example, mode) in descending order and right singular
    vectors (example, unit, mode). Units with d = 0 are left out of the decomposition, which is much quicker behind a
    ReLU; modes that are missing for this reason have value 0 and vectors of zeros.
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
