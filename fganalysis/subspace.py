"""Subspaces that gradients live in: spectra, effective ranks, overlaps, principal angles. Arrays only.

Every function takes NumPy arrays or torch tensors of float32 or float64, on any device, all of one kind in one call; it
computes in double precision and returns double precision of the same kind, on the same device. A matrix is
(example, unit): gradients, inputs, or the next layer's units against this layer's for an upstream Jacobian; leading
dimensions are a batch of matrices. Its modes are its right singular vectors, in descending order of singular values.

A high overlap of the gradient with a dominant subspace is no evidence that descending inside it works (Song et al.
2025), and no overlap means anything without a random subspace's beside it: `random_overlap`, `random_alignment`.

Raises ValueError throughout for other data types, mixed kinds, empty arrays, NaN or infinite entries, and shapes that
do not fit each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import check_whole
from fganalysis.sound_arrays import Array, double, like, precision, same_batch, same_kind, same_units

SHARE_TOLERANCE = 1e-12  # ten equal modes hold 0.9 of the energy in nine of them whatever the rounding of a sum
ORTHONORMAL_TOLERANCE = 1e4  # in units of the basis' own machine precision
LEAST_GAP = 1e-10  # closer singular values, relative to the largest, leave vectors that rounding turns visibly
GAP_ROUNDING = 10.0  # torch's orthogonal matrices in single precision have gaps of five times their precision


@dataclass(frozen=True, eq=False)
class Modes(Generic[Array]):
    """Singular values (…, mode), descending, and right singular vectors (…, unit, mode); both zero beyond the rank.

    gap: singular values this close, relative to the largest, are equal. Their vectors are any basis of what they span.
    """

    values: Array
    vectors: Array
    gap: float = LEAST_GAP

    @property
    def rank(self) -> Array:
        """How many singular values count as nonzero, (…)."""
        return (self.values > 0).sum(-1)

    @property
    def distinct(self) -> Array:
        """Whether each nonzero singular value differs from the next, (…, mode − 1); zeros differ from everything."""
        following = self.values[..., 1:]
        return (self.values[..., :-1] - following > self.gap * self.values[..., :1]) | (following == 0)

    def leading(self, k: int) -> Array:
        """The basis (…, unit, k) of the k leading modes.

        Raises ValueError where that subspace is not determined: k outside 1 … rank of every matrix, or singular values
        k and k+1 that are equal, so that any mixture of their modes would do as well.
        """
        check_whole("k", k, None)
        least = int(self.rank.min())
        if not 1 <= k <= least:
            raise ValueError(f"k must be between 1 and {least}, the smallest rank, got {k}")
        if k < self.values.shape[-1] and not bool(self.distinct[..., k - 1].all()):
            raise ValueError(f"singular values {k} and {k + 1} are equal, so {k} leading directions are undetermined")
        return self.vectors[..., :k]


def singular_values(matrix: Array) -> Array:
    """Singular values, descending: (…, example, unit) → (…, mode), in the units of the matrix."""
    return like(torch.linalg.svdvals(double(matrix, "matrix", 2)), matrix)


def modes(matrix: Array) -> Modes[Array]:
    """Singular values and right singular vectors by LAPACK: (…, example, unit) → min(example, unit) modes.

    Singular values up to max(example, unit) · precision of the matrix · σ₁ count as zero, and those closer than
    10 · √min(example, unit) · precision · σ₁, or 1e-10 · σ₁, as equal.
    """
    values, right = torch.linalg.svd(double(matrix, "matrix", 2), full_matrices=False)[1:]
    zero, gap = max(matrix.shape[-2:]) * precision(matrix), rounding_gap(min(matrix.shape[-2:]), precision(matrix))
    return kept_modes(values, right.mT, zero, gap, matrix)


@dataclass(frozen=True, eq=False)
class RandomisedModes(Generic[Array]):
    """k modes of a large matrix A, with what is known of their error.

    modes: values (mode,) and vectors (unit, mode). error (mode,): the residual ‖Aᵀu − σv‖/√2; some exact singular value
    lies within it of each value. remainder: ‖A − AQQᵀ‖_F of the sketched range Q. Missed modes show in it:

        values_i² ≤ σ_i² ≤ values_i² + remainder²
    """

    modes: Modes[Array]
    error: Array
    remainder: float


def randomised_modes(
    matrix: Array, k: int, *, seed: int, oversampling: int = 10, power_iterations: int = 2
) -> RandomisedModes[Array]:
    """The k leading modes of one large matrix (example, unit) by a randomised range finder with power iterations.

    The start is Gaussian, drawn on the CPU from ``seed``. The bounds of `RandomisedModes` hold whatever was drawn; only
    how tight they are is chance. Raises ValueError for k outside 1 … min(example, unit). Source: Halko, Martinsson and
    Tropp 2011.
    """
    rows = double(matrix, "matrix", 2)
    if rows.ndim != 2:
        raise ValueError(f"matrix must be (example, unit), got the shape {tuple(rows.shape)}")
    check_whole("k", k, None)
    check_whole("seed", seed, None)
    check_whole("oversampling", oversampling, None)
    check_whole("power_iterations", power_iterations, None)
    if not 1 <= k <= min(rows.shape):
        raise ValueError(f"k must be between 1 and {min(rows.shape)}, the smaller side of the matrix, got {k}")
    if oversampling < 0 or power_iterations < 0:
        raise ValueError(
            f"oversampling and power_iterations must not be negative, got {oversampling}, {power_iterations}"
        )
    largest = float(rows.abs().max()) or 1.0
    rows = rows / largest  # squares in the residuals underflow or overflow otherwise, and the bounds with them
    shape = (rows.shape[0], min(k + oversampling, *rows.shape))
    start = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(rows.mT @ start.to(rows.device))[0]
    for _ in range(power_iterations):
        basis = torch.linalg.qr(rows.mT @ torch.linalg.qr(rows @ basis)[0])[0]
    image = rows @ basis
    left, values, inner = torch.linalg.svd(image, full_matrices=False)
    left, values, right = left[:, :k], values[:k], (basis @ inner.mT)[:, :k]
    error = torch.linalg.vector_norm(rows.mT @ left - right * values, dim=0) / math.sqrt(2)
    remainder = torch.linalg.matrix_norm(rows - image @ basis.mT)
    zero, gap = max(rows.shape) * precision(matrix), rounding_gap(min(rows.shape), precision(matrix))
    found = kept_modes(values * largest, right, zero, gap, matrix)
    return RandomisedModes(found, like(error * largest, matrix), float(remainder) * largest)


def energy_curve(values: Array) -> Array:
    """k ↦ Σ_{i≤k} σ_i² / Σ σ_i², the share of the energy in the k leading modes, (…, mode); NaN for a zero spectrum.

    Raises ValueError for singular values (…, mode) that rise.
    """
    return like(_descending_shares(values).cumsum(-1), values)


def stable_rank(values: Array) -> Array:
    """‖A‖_F²/‖A‖₂² = Σ σ_i² / σ₁² from singular values (…, mode); NaN for a zero spectrum."""
    return like(1 / _shares(values).amax(-1), values)


def entropy_rank(values: Array) -> Array:
    """exp(−Σ p_i ln p_i) with p_i = σ_i²/Σ σ², the shares of energy; NaN for a zero spectrum.

    Roy and Vetterli 2007 define their effective rank with p_i = σ_i/Σ σ instead, which is larger.
    """
    return like(torch.special.entr(_shares(values)).sum(-1).exp(), values)


def participation_ratio(values: Array) -> Array:
    """(Σ σ_i²)² / Σ σ_i⁴ from singular values (…, mode); NaN for a zero spectrum."""
    return like(1 / _shares(values).square().sum(-1), values)


def modes_for_energy(values: Array, share: float = 0.9) -> Array:
    """The least number of leading modes that holds ``share`` of the energy, to within 1e-12; 0 for a zero spectrum.

    Raises ValueError for a share outside (0, 1] and for singular values that rise.
    """
    if not isinstance(share, Real) or not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share!r}")
    short = _descending_shares(values).nan_to_num(1.0).cumsum(-1) < share - SHARE_TOLERANCE
    nonzero = double(values, "values", 1).amax(-1) > 0
    return like((short.sum(-1) + 1) * nonzero, values)


def overlap_curve(gradient: Array, basis: Array | Modes[Array]) -> Array:
    """k ↦ o_k² = ‖V_kᵀg‖²/‖g‖², the share of a gradient's square in the first k directions of a basis, (…, mode).

    gradient: (…, unit). basis: (…, unit, mode), orthonormal or zero columns in order; leading dimensions broadcast.
    Columns are taken as they come; of `Modes`, a k between equal singular values gets what a random basis of their span
    is expected to give, which rises linearly from one end of the span to the other and does not see the basis drawn.
    A zero gradient gives NaN. Raises ValueError for a basis that is not orthonormal to 1e4 times its precision.
    """
    found = basis if isinstance(basis, Modes) else None
    basis = basis.vectors if isinstance(basis, Modes) else basis
    same_kind(gradient, basis)
    vectors, columns = double(gradient, "gradient", 1), double(basis, "basis", 2)
    same_units(vectors.shape[-1], columns.shape[-2])
    same_batch(vectors.shape[:-1], columns.shape[:-2])
    _check_orthonormal(columns, precision(basis), zero_columns=True)
    vectors = vectors / vectors.abs().amax(-1, keepdim=True)  # squares of tiny gradients underflow
    components = (vectors[..., None, :] @ columns)[..., 0, :].square()
    if found is not None:
        components = spread_evenly(components, torch.as_tensor(found.distinct))
    curve = components.cumsum(-1) / vectors.square().sum(-1, keepdim=True)
    return like(curve.clamp(max=1.0), gradient)


def principal_angles(first: Array, second: Array) -> Array:
    """Principal angles in radians, the smallest first, between the spans of two orthonormal bases.

    first: (…, unit, k). second: (…, unit, m); leading dimensions broadcast. Result (…, min(k, m)). Angles below 45° are
    taken from their sines, others from their cosines: none loses digits. (SciPy 1.17 lists the largest first, and takes
    a small angle beside a large one from its cosine: 1e-9 becomes 0.) Raises ValueError for a basis that is not
    orthonormal to 1e4 times its precision. Source: Björck and Golub 1973.
    """
    same_kind(first, second)
    wide, narrow = double(first, "first", 2), double(second, "second", 2)
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


@dataclass(frozen=True)
class RandomValue:
    """Mean and standard deviation of a quantity when a subspace is drawn uniformly at random."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def random_overlap(k: int | NDArray[np.int64], unit: int) -> RandomValue:
    """o_k² of a fixed gradient and a random k-dimensional subspace of R^unit: o² ~ Beta(k/2, (unit−k)/2).

    The mean is k/unit, the variance 2k(unit−k)/(unit²(unit+2)). k: one number or an array. Raises ValueError for k
    outside 0 … unit.
    """
    return random_alignment(k, 1, unit)


def random_alignment(k: int | NDArray[np.int64], other_k: int | NDArray[np.int64], unit: int) -> RandomValue:
    """Mean squared cosine of the principal angles between a k- and an m-dimensional subspace of R^d, one random.

    With projectors P and Q it is tr(PQ)/min(k, m). A random rotation prefers no direction in the irreducible space of
    traceless symmetric matrices, which has (d−1)(d+2)/2 dimensions, and the traceless parts of P and Q have squared
    norms k(d−k)/d and m(d−m)/d. So

        E tr(PQ) = km/d        Var tr(PQ) = 2km(d−k)(d−m) / (d²(d−1)(d+2))

    Single ordered angles have no such elementary form. k, other_k (m): numbers or arrays. Raises ValueError outside
    0 … unit (d), and for none or no whole numbers.
    """
    check_whole("unit", unit, None)
    first, second = np.asarray(k, dtype=np.float64), np.asarray(other_k, dtype=np.float64)
    if 0 in (first.size, second.size) or any(bool((one != np.floor(one)).any()) for one in (first, second)):
        raise ValueError(f"dimensions of subspaces must be whole numbers, at least one, got {k} and {other_k}")
    if unit < 1 or min(first.min(), second.min()) < 0 or max(first.max(), second.max()) > unit:
        raise ValueError(f"dimensions of subspaces must lie between 0 and unit = {unit}, got {k} and {other_k}")
    n_angles = np.maximum(np.minimum(first, second), 1)
    variance = 2 * first * second * (unit - first) * (unit - second) / (unit**2 * max(unit - 1, 1) * (unit + 2))
    return RandomValue(first * second / unit / n_angles, np.sqrt(variance) / n_angles)


def _check_orthonormal(columns: Tensor, precision: float, zero_columns: bool) -> None:
    gram = columns.mT @ columns
    target = torch.eye(columns.shape[-1], dtype=gram.dtype, device=gram.device)
    if zero_columns:
        target = target * (columns != 0).any(-2)[..., None, :]
    if bool(((gram - target).abs() > ORTHONORMAL_TOLERANCE * precision).any()):
        raise ValueError("the columns of a basis must be orthonormal")


def _shares(values: Array) -> Tensor:
    """σ_i² / Σ σ²: divided by the largest first, as squares of tiny values underflow."""
    sigma = double(values, "values", 1)
    if bool((sigma < 0).any()):
        raise ValueError("singular values must not be negative")
    squares = (sigma / sigma.amax(-1, keepdim=True)).square()
    return squares / squares.sum(-1, keepdim=True)


def _descending_shares(values: Array) -> Tensor:
    shares, sigma = _shares(values), double(values, "values", 1)
    if bool((sigma.diff(dim=-1) > precision(values) * sigma.amax(-1, keepdim=True)).any()):
        raise ValueError("singular values must be in descending order")
    return shares


def rounding_gap(smaller_side: int, precision: float) -> float:
    """Singular values closer than this, relative to the largest, are equal but for the rounding of their matrix."""
    return max(LEAST_GAP, GAP_ROUNDING * math.sqrt(smaller_side) * precision)


def spread_evenly(parts: Tensor, distinct: Tensor) -> Tensor:
    """Parts (…, mode) with those of equal singular values replaced by their mean; distinct: see `Modes`."""
    if bool(distinct.all()):
        return parts
    ends = torch.cat([distinct.new_zeros((*distinct.shape[:-1], 1)), distinct], dim=-1)
    span = ends.cumsum(-1).expand(parts.shape)
    sums, sizes = (torch.zeros_like(parts).scatter_add(-1, span, one) for one in (parts, torch.ones_like(parts)))
    return (sums / sizes.clamp(min=1)).gather(-1, span)


def kept_modes(values: Tensor, vectors: Tensor, resolution: float, gap: float, source: Array) -> Modes[Array]:
    """Modes of the kind of array of ``source``, with those up to ``resolution`` of the largest set to zero."""
    kept = values > resolution * values[..., :1]
    return Modes(like(values * kept, source), like(vectors * kept[..., None, :], source), gap)
