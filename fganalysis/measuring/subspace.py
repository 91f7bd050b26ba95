"""Subspaces that gradients live in: spectra, effective ranks, overlaps, principal angles. Arrays only.

Every function takes NumPy arrays or torch tensors of float32 or float64, on any device, all of one kind in one call; it
computes in double precision and returns double precision of the same kind, on the same device. A matrix is
(example, unit): gradients, inputs, or the next layer's units against this layer's for an upstream Jacobian; leading
dimensions are a batch of matrices. Its modes are its right singular vectors, in descending order of singular values.
Multiply an array by a constant and no share, rank, overlap or angle changes.

Singular vectors are known up to their signs, and those of equal singular values are any basis of what they span. No
function here returns a number that depends on which basis a library chose: `Modes.leading` refuses a part of such a
span, `overlap_curve` gives the mean over all its bases.

A high overlap of the gradient with a dominant subspace is no evidence that descending inside it works (Song et al.
2025), and no overlap means anything without a random subspace's beside it: `random_overlap`, `random_alignment`.

Raises ValueError throughout for other data types, masked arrays, mixed kinds, empty arrays, NaN or infinite entries,
shapes that do not fit each other, and results that leave the range of a double.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import check_number, check_seed, check_whole, described
from fganalysis.measuring.sound_arrays import (
    ArrayOrTensor,
    double,
    in_range,
    like,
    power_of_two,
    precision,
    same_batch,
    same_kind,
    same_units,
)

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
    "randomised_modes",
    "singular_values",
    "stable_rank",
]

LARGEST_UNIT = 2**53  # all whole numbers up to this one are doubles
MOST_POWER_ITERATIONS = 1000  # two are enough; a mistyped number would run for ever
SHARE_TOLERANCE = 1e-12  # so that nine of ten equal modes hold 0.9 of the energy in spite of rounding
ORTHONORMAL_TOLERANCE = 1e4  # in units of the basis' own machine precision
LEAST_GAP = 1e-10  # singular values closer than this, relative to the largest, are equal: rounding mixes their vectors
GAP_ROUNDING = 10.0  # torch's orthogonal matrices in single precision have gaps of five times their precision


@dataclass(frozen=True, eq=False)
class Modes(Generic[ArrayOrTensor]):
    """Singular values (…, mode), descending, and right singular vectors (…, unit, mode); both zero beyond the rank.

    gap: singular values this close, relative to the largest, are equal. Their vectors are any basis of what they span.
    A nonzero one as close to zero is kept; its vector is known no better than the matrix's precision times σ₁/σ.
    beyond: the singular value after the last of these, or what it is at most, where a summary left modes out.
    """

    values: ArrayOrTensor
    vectors: ArrayOrTensor
    gap: float = LEAST_GAP
    beyond: float = 0.0

    def __post_init__(self) -> None:
        values, vectors = double(self.values, "values", 1), double(self.vectors, "vectors", 2)
        same_kind(self.values, self.vectors)
        if vectors.shape[:-2] != values.shape[:-1] or vectors.shape[-1] != values.shape[-1]:
            raise ValueError(f"vectors must be (…, unit, mode) and values (…, mode), got {_shapes(vectors, values)}")
        _check_descending(values, precision(self.values))
        check_number("gap", self.gap, least=0)
        check_number("beyond", self.beyond, least=0)

    @property
    def rank(self) -> ArrayOrTensor:
        """How many singular values count as nonzero, (…)."""
        return (self.values > 0).sum(-1)

    @property
    def distinct(self) -> ArrayOrTensor:
        """Whether each nonzero singular value differs from the next, (…, mode − 1); zeros differ from everything."""
        following = self.values[..., 1:]
        return (self.values[..., :-1] - following > self.gap * self.values[..., :1]) | (following == 0)

    @property
    def complete(self) -> ArrayOrTensor:
        """Whether the last singular value differs from what may lie beyond it, (…); a zero differs from everything."""
        last = self.values[..., -1]
        return (last - self.beyond > self.gap * self.values[..., 0]) | (last == 0) | (self.beyond == 0)

    def leading(self, k: int) -> ArrayOrTensor:
        """The basis (…, unit, k) of the k leading modes.

        Raises ValueError where that subspace is not determined: k outside 1 … rank of every matrix, or singular values
        k and k+1 that are equal or, where modes were left out, may be, so that any mixture of their modes would do as
        well.
        """
        check_whole("k", k, None)
        least = int(self.rank.min())
        if not 1 <= k <= least:
            raise ValueError(f"k must be between 1 and {least}, the smallest rank, got {k}")
        ends = self.distinct[..., k - 1] if k < self.values.shape[-1] else self.complete
        if not bool(ends.all()):
            raise ValueError(f"singular values {k} and {k + 1} are equal, so {k} leading directions are undetermined")
        return self.vectors[..., :k]


def singular_values(matrix: ArrayOrTensor) -> ArrayOrTensor:
    """Singular values, descending: (…, example, unit) → (…, mode), in the units of the matrix."""
    rows = double(matrix, "matrix", 2)
    scale = power_of_two(rows, 2)
    return like(in_range(torch.linalg.svdvals(rows / scale) * scale[..., 0], "singular values"), matrix)


def modes(matrix: ArrayOrTensor) -> Modes[ArrayOrTensor]:
    """Singular values and right singular vectors by LAPACK: (…, example, unit) → min(example, unit) modes.

    Singular values up to max(example, unit) · precision of the matrix · σ₁ count as zero, and those closer than
    10 · √min(example, unit) · precision · σ₁, or 1e-10 · σ₁, as equal.
    """
    rows = double(matrix, "matrix", 2)
    scale = power_of_two(rows, 2)
    values, right = torch.linalg.svd(rows / scale, full_matrices=False)[1:]
    values = in_range(values * scale[..., 0], "singular values")
    zero, gap = max(matrix.shape[-2:]) * precision(matrix), rounding_gap(min(matrix.shape[-2:]), precision(matrix))
    return kept_modes(values, right.mT, zero, gap, matrix)


@dataclass(frozen=True, eq=False)
class RandomisedModes(Generic[ArrayOrTensor]):
    """k modes of a large matrix A, with what is known of their error.

    modes: values (mode,) and vectors (unit, mode). error (mode,): the residual ‖Aᵀu − σv‖/√2; some exact singular value
    lies within it of each value. remainder: ‖A − AQQᵀ‖_F of the sketched range Q. Missed modes show in it:

        values_i² ≤ σ_i² ≤ values_i² + remainder²

    Vectors depend on the start, by about error over the distance of their singular value to the next; those of singular
    values closer than their errors are any basis. `modes.leading(k)` asks whether values k and k + 1 of the sketch are
    equal, and without oversampling whether value k is above the remainder.
    """

    modes: Modes[ArrayOrTensor]
    error: ArrayOrTensor
    remainder: float


def randomised_modes(
    matrix: ArrayOrTensor, k: int, *, seed: int, oversampling: int = 10, power_iterations: int = 2
) -> RandomisedModes[ArrayOrTensor]:
    """The k leading modes of one large matrix (example, unit) by a randomised range finder with power iterations.

    The start is Gaussian, drawn on the CPU from ``seed``. The bounds of `RandomisedModes` hold whatever was drawn; only
    how tight they are is chance. Raises ValueError for k outside 1 … min(example, unit). Source: Halko, Martinsson and
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


def energy_curve(values: ArrayOrTensor) -> ArrayOrTensor:
    """k ↦ Σ_{i≤k} σ_i² / Σ σ_i², the share of the energy in the k leading modes, (…, mode); NaN for a zero spectrum.

    Raises ValueError for singular values (…, mode) that rise.
    """
    return like(_descending_shares(values).cumsum(-1), values)


def stable_rank(values: ArrayOrTensor) -> ArrayOrTensor:
    """‖A‖_F²/‖A‖₂² = Σ σ_i² / σ₁² from singular values (…, mode); NaN for a zero spectrum."""
    return like(1 / _shares(values).amax(-1), values)


def entropy_rank(values: ArrayOrTensor) -> ArrayOrTensor:
    """exp(−Σ p_i ln p_i) with p_i = σ_i²/Σ σ², the shares of energy; NaN for a zero spectrum.

    Roy and Vetterli 2007 define their effective rank with p_i = σ_i/Σ σ instead, which is larger.
    """
    return like(torch.special.entr(_shares(values)).sum(-1).exp(), values)


def participation_ratio(values: ArrayOrTensor) -> ArrayOrTensor:
    """(Σ σ_i²)² / Σ σ_i⁴ from singular values (…, mode); NaN for a zero spectrum."""
    return like(1 / _shares(values).square().sum(-1), values)


def modes_for_energy(values: ArrayOrTensor, share: float = 0.9) -> ArrayOrTensor:
    """The least number of leading modes that holds ``share`` of the energy, to within 1e-12; 0 for a zero spectrum.

    Raises ValueError for a share outside (0, 1] and for singular values that rise.
    """
    check_number("share", share, above=0, most=1)
    short = _descending_shares(values).nan_to_num(1.0).cumsum(-1) < share - SHARE_TOLERANCE
    nonzero = double(values, "values", 1).amax(-1) > 0
    return like((short.sum(-1) + 1) * nonzero, values)


def overlap_curve(gradient: ArrayOrTensor, basis: ArrayOrTensor | Modes[ArrayOrTensor]) -> ArrayOrTensor:
    """k ↦ o_k² = ‖V_kᵀg‖²/‖g‖², the share of a gradient's square in the first k directions of a basis, (…, mode).

    gradient: (…, unit). basis: (…, unit, mode), orthonormal or zero columns in order; leading dimensions broadcast.
    Columns are taken as they come; of `Modes`, a k between equal singular values gets what a random basis of their span
    is expected to give, which rises linearly from one end of the span to the other and does not see the basis drawn.
    Where modes were left out that may belong to the last span, this is NaN from the first k inside it. A zero gradient
    gives NaN. Raises ValueError for a basis that is not orthonormal to 1e4 times its precision.
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
        components = components.masked_fill(_last_span(distinct) & ~complete[..., None], math.nan)
    curve = components.cumsum(-1) / vectors.square().sum(-1, keepdim=True)
    return like(curve.clamp(max=1.0), gradient)


def principal_angles(first: ArrayOrTensor, second: ArrayOrTensor) -> ArrayOrTensor:
    """Principal angles in radians, the smallest first, between the spans of two orthonormal bases.

    first: (…, unit, k). second: (…, unit, m); leading dimensions broadcast. Result (…, min(k, m)). Angles below 45° are
    taken from their sines, others from their cosines: none loses digits. (SciPy 1.17 lists the largest first, and takes
    a small angle beside a large one from its cosine: 1e-9 becomes 0.) Raises ValueError for a basis that is not
    orthonormal to 1e4 times its precision. Source: Björck and Golub 1973.
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

    Single ordered angles have no such elementary form. k, other_k (m): whole numbers, or NumPy arrays of them that
    broadcast. Raises ValueError outside 0 … unit (d), and for none or no whole numbers.
    """
    check_whole("unit", unit, 1, LARGEST_UNIT)
    first, second = _dimensions("k", k, unit), _dimensions("other_k", other_k, unit)
    same_batch(first.shape, second.shape)
    n_angles = np.maximum(np.minimum(first, second), 1)
    size = float(unit)
    variance = 2 * first * second * (size - first) * (size - second) / (size**2 * max(size - 1, 1) * (size + 2))
    return RandomValue(first * second / size / n_angles, np.sqrt(variance) / n_angles)


def _dimensions(name: str, value: int | NDArray[np.int64], unit: int) -> NDArray[np.float64]:
    if not isinstance(value, np.ndarray):
        check_whole(name, value, 0, unit)
        return np.asarray(value, dtype=np.float64)
    whole = value.dtype.kind in "iuf" and not isinstance(value, np.ma.MaskedArray) and value.size > 0
    if not whole or not bool((value == np.floor(value)).all()):
        raise ValueError(f"{name} must be a whole number or an array of whole numbers, got {described(value)}")
    if value.min() < 0 or value.max() > unit:
        raise ValueError(f"{name} must lie between 0 and unit = {unit}, got {value.min()} to {value.max()}")
    return np.asarray(value, dtype=np.float64)


def _check_orthonormal(columns: Tensor, precision: float, zero_columns: bool) -> None:
    gram = columns.mT @ columns
    target = torch.eye(columns.shape[-1], dtype=gram.dtype, device=gram.device)
    if zero_columns:
        target = target * (columns != 0).any(-2)[..., None, :]
    if bool(((gram - target).abs() > ORTHONORMAL_TOLERANCE * precision).any()):
        raise ValueError("the columns of a basis must be orthonormal")


def _check_descending(values: Tensor, precision: float) -> None:
    if bool((values < 0).any()):
        raise ValueError("singular values must not be negative")
    if bool((values.diff(dim=-1) > precision * values.amax(-1, keepdim=True)).any()):
        raise ValueError("singular values must be in descending order")


def _shares(values: ArrayOrTensor) -> Tensor:
    """σ_i² / Σ σ²: divided by the largest first, as squares of tiny values underflow."""
    sigma = double(values, "values", 1)
    if bool((sigma < 0).any()):
        raise ValueError("singular values must not be negative")
    squares = (sigma / sigma.amax(-1, keepdim=True)).square()
    return squares / squares.sum(-1, keepdim=True)


def _descending_shares(values: ArrayOrTensor) -> Tensor:
    _check_descending(double(values, "values", 1), precision(values))
    return _shares(values)


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)


def rounding_gap(smaller_side: int, precision: float) -> float:
    """Singular values closer than this, relative to the largest, are equal but for the rounding of their matrix."""
    return max(LEAST_GAP, GAP_ROUNDING * math.sqrt(smaller_side) * precision)


def spread_evenly(parts: Tensor, distinct: Tensor) -> Tensor:
    """Parts (…, mode) with those of equal singular values replaced by their mean; distinct: see `Modes`."""
    if bool(distinct.all()):
        return parts
    span = _spans(distinct).expand(parts.shape)
    sums, sizes = (torch.zeros_like(parts).scatter_add(-1, span, values) for values in (parts, torch.ones_like(parts)))
    return (sums / sizes.clamp(min=1)).gather(-1, span)


def _spans(distinct: Tensor) -> Tensor:
    """The number of the span of equal singular values that each mode belongs to, (…, mode)."""
    return torch.cat([distinct.new_zeros((*distinct.shape[:-1], 1)), distinct], dim=-1).cumsum(-1)


def _last_span(distinct: Tensor) -> Tensor:
    """Whether a mode belongs to the last span, (…, mode)."""
    spans = _spans(distinct)
    return spans == spans[..., -1:]


def kept_modes(
    values: Tensor, vectors: Tensor, resolution: float, gap: float, source: ArrayOrTensor, beyond: float = 0.0
) -> Modes[ArrayOrTensor]:
    """Modes of the kind of array of ``source``, with those up to ``resolution`` of the largest set to zero."""
    kept = values > resolution * values[..., :1]
    return Modes(like(values * kept, source), like(vectors * kept[..., None, :], source), gap, beyond)
