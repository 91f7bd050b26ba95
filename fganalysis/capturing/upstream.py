"""The upstream Jacobian of a layer: the derivative of the next pre-activations by this layer's, for each example.

    J_b = W diag(d_b),        W the weight of the next layer, d_b = φ'(s_b)

All examples share W, and only the mask d_b differs. So a product for the whole batch is the mask and one matrix product
with W. The matrices J_b are formed only by `UpstreamJacobian.dense` and by exact decompositions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from fganalysis.arguments import check_flag, check_kind, check_whole

START_SEED = 20251103  # the same starting vectors for every example, so that a result depends on its example alone
CHUNK_ELEMENTS = 2**22  # numbers a chunk of examples may need on the CPU: 16 MiB in float32, about what a cache holds

# Tuned for accuracy against time. To tune them again, change them, run tests/unit/capturing/test_upstream.py, which
# compares the singular vectors with LAPACK's, and `python -m studies.step_cost`, which times a step with each method.
OVERSAMPLING = 6  # extra vectors of subspace iteration beyond k: without them the k-th vector converges slowly
KRYLOV_START, KRYLOV_PER_MODE = 42.0, 3.6  # size of the Krylov basis at a geometric mean of 512 units


@dataclass(frozen=True, eq=False)
class UpstreamJacobian:
    """The matrices J_b = weight · diag(derivative_b) of a batch.

    weight: (next_unit, unit), without a bias column. derivative: (example, unit), φ' at this layer's pre-activations.
    Raises ValueError when the two do not fit together.
    """

    weight: Tensor
    derivative: Tensor

    def __post_init__(self) -> None:
        for name in ("weight", "derivative"):
            check_kind(name, getattr(self, name), Tensor, "a tensor")
        if self.weight.ndim != 2 or self.derivative.ndim != 2 or self.weight.shape[1] != self.derivative.shape[1]:
            raise ValueError(
                "weight must be (next_unit, unit) and derivative (example, unit) with the same unit, "
                f"got {tuple(self.weight.shape)} and {tuple(self.derivative.shape)}"
            )

    def product(self, vectors: Tensor) -> Tensor:
        """J_b v: (…, example, unit) → (…, example, next_unit)."""
        return (vectors * self.derivative) @ self.weight.T

    def transposed_product(self, noise: Tensor) -> Tensor:
        """J_bᵀ ε: (…, example, next_unit) → (…, example, unit)."""
        return (noise @ self.weight) * self.derivative

    def dense(self) -> Tensor:
        """Every J_b written out: (example, next_unit, unit)."""
        return self.weight * self.derivative[:, None, :]

    def rank(self) -> Tensor:
        """Rank of every J_b by LAPACK, (example,): singular values above max(shape)·eps·σ_max count, as in torch."""
        values = torch.cat([torch.linalg.svdvals(part.dense()) for part in self._chunks(self.weight.numel())])
        return self._nonzero(values).sum(1)

    def singular_vectors(
        self,
        k: int | Literal["rank"],
        *,
        which: Literal["top", "bottom"] = "top",
        exact: bool = False,
        iterations: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k leading (or smallest nonzero) singular triplets of every J_b, in descending order.

            J_b v_i = σ_i u_i

        Returns left (example, next_unit, k), singular values (example, k) and right (example, unit, k). An example with
        fewer than k nonzero singular values has its surplus columns set to zero, as nothing passes along them.

        k: the number of triplets, or "rank" for the largest rank of an example. which: "top", or "bottom" for the
        smallest nonzero singular values. exact: a full LAPACK decomposition of every J_b. "bottom" and "rank" always
        use it, and so do matrices too small for a smaller Krylov basis.

        Otherwise a randomised Krylov method for all examples at once: `krylov_size` powers of J_bᵀJ_b on one random
        vector, fully reorthogonalised, then a Rayleigh–Ritz step. A single vector needs fewer products than a block
        (Meyer, Musco & Musco 2024, arXiv 2305.02535), and rounding errors separate equal singular values. Singular
        values below √eps·σ_max (3e-4 of the largest in float32) are not resolved: use exact.

        iterations: the number of subspace iterations to use instead. They start at the leading right singular vectors
        of `weight`, which the mask changes little. This approximation is several times faster than the Krylov method,
        and meant for training. The vectors are orthonormal and lie in the row space, but hold slightly less than the
        leading
        energy Σ σ_i²: after 2 iterations 0.97 of it at 512 units and 0.99 at 128, for networks at initialisation.

        Raises ValueError for k < 1, for k > min(next_unit, unit), for an unknown `which`, for iterations < 0 and for
        iterations together with exact, "rank" or "bottom".
        """
        smaller = min(self.weight.shape)
        check_flag("exact", exact)
        if iterations is not None:
            check_whole("iterations", iterations, None)
        if iterations is not None and (iterations < 0 or exact or k == "rank" or which == "bottom"):
            raise ValueError(
                "iterations must be at least 0 and go with the top k directions and exact=False, "
                f"got iterations={iterations}, k={k!r}, which={which!r}, exact={exact}"
            )
        if which not in ("top", "bottom"):
            raise ValueError(f"which must be 'top' or 'bottom', got {which!r}")
        if k == "rank":
            left, values, right = self._decomposed(smaller, "top")
            rank = int((values > 0).sum(1).max())
            return left[:, :, :rank], values[:, :rank], right[:, :, :rank]
        if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= smaller:
            raise ValueError(f"k must be 'rank' or from 1 to {smaller}, the Jacobian's smaller side, got {k!r}")
        if iterations is not None:
            return self._iterated(k, iterations)
        size = krylov_size(k, *self.weight.shape)
        if exact or which == "bottom" or size >= smaller:
            return self._decomposed(k, which)
        return _joined([part._leading(k, size) for part in self._chunks(size * self.weight.shape[1])])

    def _chunks(self, n_elements: int) -> list[UpstreamJacobian]:
        """The same Jacobians, a few examples at a time, when the work needs so many elements for each example."""
        limit = CHUNK_ELEMENTS if self.weight.device.type == "cpu" else 16 * CHUNK_ELEMENTS
        n_examples = len(self.derivative)
        n_chunks = max(1, min(n_examples, math.ceil(n_examples * n_elements / limit)))
        return [UpstreamJacobian(self.weight, part) for part in self.derivative.tensor_split(n_chunks)]

    def _nonzero(self, values: Tensor) -> Tensor:
        """Which singular values (example, mode), the largest first, count as nonzero."""
        tolerance = max(self.weight.shape) * torch.finfo(values.dtype).eps
        return values > tolerance * values[:, :1]

    def _decomposed(self, k: int, which: str) -> tuple[Tensor, Tensor, Tensor]:
        """k singular triplets by LAPACK, a chunk of examples at a time."""
        parts = []
        for part in self._chunks(self.weight.numel()):
            left, values, right = torch.linalg.svd(part.dense(), full_matrices=False)
            kept = self._nonzero(values)
            rank = kept.sum(1, keepdim=True)
            first = (rank - k).clamp_min(0) if which == "bottom" else torch.zeros_like(rank)
            modes = (first + torch.arange(k, device=rank.device)).clamp_max(values.shape[1] - 1)
            values = (values * kept).gather(1, modes)
            left = left.gather(2, modes[:, None, :].expand(-1, left.shape[1], -1))
            right = right.mT.gather(2, modes[:, None, :].expand(-1, right.shape[2], -1))
            parts.append(_without_surplus(left, values, right, values > 0))
        return _joined(parts)

    def _leading(self, k: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k leading singular triplets within a Krylov basis of that size."""
        # Each example is scaled to a largest derivative of 1: the squares of saturated units' φ' underflow in float32.
        scale = self.derivative.abs().amax(1, keepdim=True).clamp_min(torch.finfo(self.derivative.dtype).tiny)
        mask = self.derivative / scale
        basis, projected = _krylov_basis(self.weight, mask, size)
        vectors = torch.linalg.eigh(projected).eigenvectors[:, :, -k:].flip(2)
        right = vectors.mT @ basis
        left, triangle = torch.linalg.qr(((right * mask[:, None, :]) @ self.weight.T).mT)
        inner_left, values, inner_right = torch.linalg.svd(triangle)
        return _without_surplus(left @ inner_left, values * scale, right.mT @ inner_right.mT, self._nonzero(values))

    def _iterated(self, k: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        """k approximate singular triplets by subspace iteration with a Rayleigh–Ritz step at the end."""
        size = min(k + OVERSAMPLING, *self.weight.shape)
        if size == self.weight.shape[0]:
            iterations = 0  # The start already spans the whole row space.
        gram = self.weight.T @ self.weight
        start = torch.linalg.eigh(gram).eigenvectors[:, -size:].T
        parts = []
        for part in self._chunks(4 * size * max(self.weight.shape)):
            derivative = part.derivative[:, None, :]
            block = start * derivative
            for iteration in range(iterations):
                # Nearly orthonormal is enough on the way, and the first block is that already.
                block = _orthonormal_rows(block, passes=1) if iteration > 0 else block
                block = ((block * derivative) @ gram) * derivative
            block = _orthonormal_rows(block, passes=2)
            image = (block * derivative) @ self.weight.T
            squares, vectors = torch.linalg.eigh(image @ image.mT)
            squares, vectors = squares[:, -k:].flip(1).clamp_min(0), vectors[:, :, -k:].flip(2)
            kept = self._nonzero(squares)
            values = squares.sqrt()
            left = (image.mT @ vectors) / torch.where(kept, values, 1)[:, None, :]
            parts.append(_without_surplus(left, values, block.mT @ vectors, kept))
        return _joined(parts)


def krylov_size(k: int, next_units: int, units: int) -> int:
    """Size of the Krylov basis that finds the k leading directions of a (next_unit, unit) Jacobian.

        (42 + 3.6 k) · (√(next_units · units) / 512)^⅓, rounded up

    Neighbouring singular values at the edge of a random matrix's spectrum lie n^(−⅔) apart, and the number of steps
    that a Krylov method needs grows as the inverse square root of that gap. The constants `KRYLOV_START` and
    `KRYLOV_PER_MODE` are measured on networks at initialisation, the hardest case.
    """
    return math.ceil((KRYLOV_START + KRYLOV_PER_MODE * k) * (math.sqrt(next_units * units) / 512) ** (1 / 3))


def _krylov_basis(weight: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows Q (example, basis, unit) spanned by powers of A_b = J_bᵀJ_b on a random vector, and Q A Qᵀ.

    Of Q A Qᵀ (example, basis, basis) only the lower triangle is filled. If the powers stay within the basis, as they do
    at once for an orthogonal weight, whose singular values are all equal, a new random direction continues the basis.
    If no direction is left, because fewer than `size` units are active, the remaining rows are zero.
    """
    n_examples, unit = mask.shape
    eps, tiny = torch.finfo(weight.dtype).eps, torch.finfo(weight.dtype).tiny
    generator = torch.Generator().manual_seed(START_SEED)
    starts = torch.randn(size, unit, generator=generator, dtype=torch.float64).to(weight)
    gram = weight.T @ weight if unit <= 2 * weight.shape[0] else None

    basis = weight.new_zeros(n_examples, size, unit)
    projected = weight.new_zeros(n_examples, size, size)
    vector = starts[0] * mask
    vector /= vector.norm(dim=1, keepdim=True).clamp_min(tiny)
    for step in range(size):
        basis[:, step] = vector
        masked = vector * mask
        image = masked @ gram if gram is not None else (masked @ weight.T) @ weight
        image *= mask
        length = image.norm(dim=1, keepdim=True)
        # The last two vectors first, then all: in one pass over all, each step doubles the loss of orthogonality.
        for first in (max(0, step - 1), 0):
            known = basis[:, first : step + 1]
            coefficients = image[:, None, :] @ known.mT
            projected[:, step, first : step + 1] += coefficients[:, 0]
            image[:, None, :].baddbmm_(coefficients, known, alpha=-1)
        remainder = image.norm(dim=1, keepdim=True)
        vector = image / remainder.clamp_min(tiny)
        (weak,) = (remainder < 1e-2 * length)[:, 0].nonzero(as_tuple=True)
        if len(weak) > 0 and step + 1 < size:
            lost = remainder[weak] < 100 * eps * length[weak]
            candidates = torch.where(lost, starts[step + 1] * mask[weak], vector[weak])
            vector[weak] = _orthogonal_to(candidates, basis[weak, : step + 1])
    return basis, projected


def _orthogonal_to(vectors: Tensor, basis: Tensor) -> Tensor:
    """The unit vectors (example, unit) with the basis (example, basis, unit) projected out; zero if nothing is left.

    A second projection hardly changes the length of a new direction, but removes a rounding error inside the basis.
    """
    eps, tiny = torch.finfo(vectors.dtype).eps, torch.finfo(vectors.dtype).tiny
    for least in (100 * eps, 0.5, 0.5):
        before = vectors.norm(dim=1, keepdim=True)
        vectors = vectors - ((vectors[:, None, :] @ basis.mT) @ basis)[:, 0]
        after = vectors.norm(dim=1, keepdim=True)
        vectors = torch.where(after > least * before, vectors / after.clamp_min(tiny), 0)
    return vectors


def _orthonormal_rows(block: Tensor, passes: int) -> Tensor:
    """Orthonormal rows with the span of `block` (example, row, unit); zero rows where the rows are dependent.

    By the Cholesky factor of the Gram matrix; a second pass removes the rounding errors of the first. It fails for the
    few examples with (nearly) dependent rows, which use the eigenvectors of their Gram matrix instead.
    """
    least = 1e3 * torch.finfo(block.dtype).eps
    for _ in range(passes):
        gram = block @ block.mT
        factor, failed = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal(dim1=1, dim2=2).square()
        weak = (failed != 0) | (pivots <= least * gram.diagonal(dim1=1, dim2=2)).any(1)
        eye = torch.eye(block.shape[1], dtype=block.dtype, device=block.device)
        factor = torch.where(weak[:, None, None], eye, factor)
        whitened = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False) @ block
        if weak.any():
            squares, vectors = torch.linalg.eigh(gram[weak])
            kept = squares > least * squares[:, -1:]
            scale = torch.where(kept, squares.clamp_min(torch.finfo(block.dtype).tiny).rsqrt(), 0)
            whitened[weak] = (vectors * scale[:, None, :]).mT @ block[weak]
        block = whitened
    return block


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets of all chunks of examples, one after the other."""
    lefts, spectra, rights = zip(*parts, strict=True)
    return torch.cat(lefts), torch.cat(spectra), torch.cat(rights)


def _without_surplus(left: Tensor, values: Tensor, right: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets with the columns outside `kept` (example, mode) set to zero."""
    return left * kept[:, None, :], values * kept, right * kept[:, None, :]
