"""Dominant eigenvectors of the Hessian and of the Gauss–Newton matrix of a snapshot's mean loss, matrix-free.

    H v = ∂²L/∂θ² v           G v = (1/B) Σ_b J_bᵀ (∂²ℓ_b/∂z_b²) J_b v,      J_b = ∂z_b/∂θ, z_b the outputs

θ are the taps' weights one after the other, flattened as `Snapshot.weight_gradients` are (unit by unit, a bias as the
last input), so that a weight gradient is a vector of the same space. Gur-Ari et al. 2018: after a few steps most of the
gradient lies in the span of the leading eigenvectors, as many as there are classes. Eigenvalues are in loss per squared
unit of weight. The products are those of curvlinops (Dangel et al. 2025), the vectors SciPy's Lanczos method's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import check_whole
from fganalysis.snapshot import Loss, Snapshot

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """values (mode,), descending; vectors (weight, mode), orthonormal; in double precision, as NumPy arrays."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]


def hessian_product(snapshot: Snapshot) -> Product:
    """v ↦ H v for vectors (weight,): the forward-mode derivative of the gradient along v.

    Raises ValueError for a parameter that needs a gradient and sits in no tap or in two, and the product for a vector
    of another length.
    """
    from curvlinops import HessianLinearOperator

    return _product(snapshot, HessianLinearOperator)


def gauss_newton_product(snapshot: Snapshot) -> Product:
    """v ↦ G v for vectors (weight,): forward to the outputs, through the loss's own Hessian, and back.

    Positive semi-definite for losses convex in the outputs. Raises ValueError as `hessian_product` does.
    """
    from curvlinops import GGNLinearOperator

    return _product(snapshot, GGNLinearOperator)


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


def _weights(snapshot: Snapshot) -> Tensor:
    return torch.cat([tap.weight.flatten() for tap in snapshot.taps])


class _Loss(torch.nn.Module):
    """The snapshot's loss as the module that curvlinops takes, which asks whether it is a mean or a sum."""

    reduction = "mean"

    def __init__(self, loss_fn: Loss) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # The zero has a second derivative: without any, products depend on no vector, and curvlinops's vmap fails.
        return self.loss_fn(outputs, targets) + 0 * outputs.cos().sum()


def _parameters(snapshot: Snapshot) -> list[torch.nn.Parameter]:
    """The weight and, where there is one, the bias of every tap, and nothing else that its module may hold."""
    found: list[torch.nn.Parameter] = []
    owner: dict[int, str] = {}
    for tap in snapshot.taps:
        for leaf in ("weight", "bias") if tap.has_bias else ("weight",):
            found.append(snapshot.network.get_submodule(tap.name).get_parameter(leaf))
            other = owner.setdefault(id(found[-1]), tap.name)
            if other != tap.name:
                raise ValueError(f"taps {other!r} and {tap.name!r} share their {leaf}: curvature takes them for two")
    return found


def _product(snapshot: Snapshot, operator_class: Callable[..., Any]) -> Product:
    """A curvlinops operator on the taps' parameters as a map of vectors in the order of the weight gradients."""
    for name in snapshot.untapped_parameters:
        raise ValueError(f"parameter {name!r} is in no Linear module: curvature is that of the taps' weights")
    parameters = _parameters(snapshot)
    data = [(snapshot.inputs, snapshot.targets)]
    # One batch, every time the same, and no module that draws noise: `capture` refuses those.
    operator = operator_class(snapshot.network, _Loss(snapshot.loss_fn), parameters, data, check_deterministic=False)
    sizes = [tap.weight.numel() for tap in snapshot.taps]

    def product(vector: Tensor) -> Tensor:
        if vector.shape != (sum(sizes),):
            raise ValueError(f"vector must have the shape ({sum(sizes)},), got {tuple(vector.shape)}")
        parts: list[Tensor] = []
        for tap, part in zip(snapshot.taps, vector.split(sizes), strict=True):
            matrix = part.view(tap.weight.shape)
            parts += [matrix[:, :-1], matrix[:, -1]] if tap.has_bias else [matrix]
        found = iter(operator @ parts)
        columns = [[next(found), next(found)[:, None]] if tap.has_bias else [next(found)] for tap in snapshot.taps]
        return torch.cat([torch.cat(of_tap, dim=1).flatten() for of_tap in columns])

    return product
