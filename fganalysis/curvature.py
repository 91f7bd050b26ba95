"""Dominant eigenvectors of the Hessian and of the Gauss–Newton matrix of a snapshot's mean loss, matrix-free.

    H v = ∂²L/∂θ² v           G v = (1/B) Σ_b J_bᵀ (∂²ℓ_b/∂z_b²) J_b v,      J_b = ∂z_b/∂θ, z_b the outputs

θ are the taps' weights one after the other, flattened as `Snapshot.weight_gradients` are (unit by unit, a bias as the
last input), so that a weight gradient is a vector of the same space. Gur-Ari et al. 2018: after a few steps most of the
gradient lies in the span of the leading eigenvectors, as many as there are classes. Eigenvalues are in loss per squared
unit of weight. Forward and reverse mode of torch.func give the products and SciPy's Lanczos method the vectors, not
curvlinops, the field's library: it requires torchvision, which does not import beside the CPU wheel of torch. It is an
extra, `curvature`, for the test that compares the products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.snapshot import Snapshot
from fganalysis.whole_numbers import check_whole

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """values (mode,), descending; vectors (weight, mode), orthonormal; in double precision, as NumPy arrays."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]


def hessian_product(snapshot: Snapshot) -> Product:
    """v ↦ H v for vectors (weight,): the forward-mode derivative of the gradient along v.

    Raises ValueError for a parameter that needs a gradient and sits in no tap, and the product for a vector of another
    length.
    """
    loss, weights = _loss(snapshot), _weights(snapshot)

    def product(vector: Tensor) -> Tensor:
        _check_length(vector, weights)
        return torch.func.jvp(torch.func.grad(loss), (weights,), (vector,))[1]

    return product


def gauss_newton_product(snapshot: Snapshot) -> Product:
    """v ↦ G v for vectors (weight,): forward to the outputs, through the loss's own Hessian, and back.

    Positive semi-definite for losses convex in the outputs. Raises ValueError as `hessian_product` does.
    """
    outputs = _outputs(snapshot)
    weights = _weights(snapshot)

    def loss(values: Tensor) -> Tensor:
        return snapshot.loss_fn(values, snapshot.targets)

    def product(vector: Tensor) -> Tensor:
        _check_length(vector, weights)
        forward = torch.func.jvp(outputs, (weights,), (vector,))
        curved = torch.func.jvp(torch.func.grad(loss), forward[:1], forward[1:])[1]
        return torch.func.vjp(outputs, weights)[1](curved)[0]

    return product


def dominant(
    product: Product,
    snapshot: Snapshot,
    k: int,
    *,
    tolerance: float = 1e-6,
    start: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """The k algebraically largest eigenvalues of a symmetric product and their eigenvectors, by Lanczos.

    Args:
        product: `hessian_product(snapshot)` or `gauss_newton_product(snapshot)`.
        tolerance: relative error of the eigenvalues. start: where Lanczos starts, (weight,), such as the leading vector
            of a step before; otherwise Gaussian, drawn from ``seed``.

    Raises:
        ValueError: k outside 1 … weights − 1; a start or a product of another length; a product that is NaN or
            infinite, or zero at the start, as that of a zero matrix is.
        scipy.sparse.linalg.ArpackNoConvergence: the tolerance was not reached.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    weights = _weights(snapshot)
    check_whole("k", k, None)
    if not 1 <= k < len(weights):
        raise ValueError(f"k must be between 1 and {len(weights) - 1}, one less than the weights, got {k}")

    def multiply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        along = torch.from_numpy(np.ascontiguousarray(vector).ravel()).to(weights)
        found = product(along).double().cpu().numpy()
        if found.shape != first.shape:
            raise ValueError(f"product must return the shape {first.shape}, got {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError("the product has NaN or infinite entries")
        return found

    first = np.random.default_rng(seed).normal(size=len(weights)) if start is None else np.asarray(start, np.float64)
    if first.shape != (len(weights),):  # ARPACK would read beyond its end.
        raise ValueError(f"start must have the shape ({len(weights)},), got {first.shape}")
    if not multiply(first).any():
        raise ValueError("the product is zero at the start of Lanczos: there is no dominant eigenvector to find")
    operator = LinearOperator((len(weights), len(weights)), matvec=multiply, dtype=np.float64)
    values, vectors = eigsh(operator, k=k, which="LA", v0=first, tol=tolerance)
    return Eigenpairs(values[::-1].copy(), vectors[:, ::-1].copy())


def _check_length(vector: Tensor, weights: Tensor) -> None:
    if vector.shape != weights.shape:
        raise ValueError(f"vector must have the shape {tuple(weights.shape)}, got {tuple(vector.shape)}")


def _weights(snapshot: Snapshot) -> Tensor:
    return torch.cat([tap.weight.flatten() for tap in snapshot.taps])


def _outputs(snapshot: Snapshot) -> Callable[[Tensor], Tensor]:
    """The network's outputs on the batch as a function of all weights, (weight,) → (example, …)."""
    for name in snapshot.untapped_parameters:
        raise ValueError(f"parameter {name!r} is in no Linear module: curvature is that of the taps' weights")

    def outputs(weights: Tensor) -> Tensor:
        parameters, start = {}, 0
        for tap in snapshot.taps:
            matrix = weights[start : start + tap.weight.numel()].view(tap.weight.shape)
            prefix = f"{tap.name}." if tap.name else ""
            parameters[f"{prefix}weight"] = matrix[:, : matrix.shape[1] - tap.has_bias]
            if tap.has_bias:
                parameters[f"{prefix}bias"] = matrix[:, -1]
            start += matrix.numel()
        return torch.func.functional_call(snapshot.network, parameters, (snapshot.inputs,))

    return outputs


def _loss(snapshot: Snapshot) -> Callable[[Tensor], Tensor]:
    outputs = _outputs(snapshot)
    return lambda weights: snapshot.loss_fn(outputs(weights), snapshot.targets)
