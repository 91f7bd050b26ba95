"""Dominant eigenvectors of the Hessian and of the Gauss–Newton matrix of a snapshot's mean loss, matrix-free.

    H v = ∂²L/∂θ² v           G v = (1/B) Σ_b J_bᵀ (∂²ℓ_b/∂z_b²) J_b v,      J_b = ∂z_b/∂θ, z_b the outputs

θ are the trainable parameters of the taps, one tap after the other, flattened like `Snapshot.weight_gradients` (unit by
unit, a bias as the last input). So a weight gradient is a vector of the same space. Frozen parameters are constants.
Eigenvalues are in loss per squared unit of weight. After a few steps of training most of the gradient lies in the span
of as many leading eigenvectors as there are classes (Gur-Ari et al. 2018).

H v is the forward-mode derivative of the gradient (Pearlmutter 1994). G v takes a pass forward, one through the loss
and one back (Schraudolph 2002). Eigenvectors come from SciPy's Lanczos method. Forward mode is used because it refuses
a function whose derivative it does not know. Reverse mode treats a gradient as constant if it was marked as
differentiable only once, and so gives a wrong matrix without an error.

Source: docs/mathematics.md#curvature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, jvp, vjp

from fganalysis.arguments import check_callable, check_kind, check_number, check_seed, check_whole
from fganalysis.capturing.batch import functionally_called
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring.sound_arrays import double, in_range, power_of_two, precision

__all__ = ["Eigenpairs", "Product", "dominant", "gauss_newton_product", "hessian_product"]

Product = Callable[[Tensor], Tensor]
Parts = dict[str, Tensor]  # By parameter name.

PRODUCT_ROUNDING = 1e3  # Rounding error of a network's product, in units of its precision.
ZERO_ROUNDING = 10.0  # Eigenvalues up to this many units of precision of the largest eigenvalue count as zero.


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors in double precision, as NumPy arrays.

    An eigenvalue that is zero up to rounding is 0, and so is its vector, because any vector of the null space is valid.
    Vectors are determined up to their signs. For equal eigenvalues they are the basis that Lanczos computes from its
    start. If the eigenvalue after the last one equals it, even the span of the last vectors depends on the start.

    Attributes:
        values: (mode,), descending, loss per squared unit of weight.
        vectors: (weight, mode), orthonormal.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]


def hessian_product(snapshot: Snapshot) -> Product:
    """v ↦ H v for vectors (weight,): the forward-mode derivative of the gradient along v.

    The product raises ValueError for a vector of another length, and where the network or the loss has no second
    derivative in forward mode.
    """

    def loss(parameters: Parts) -> Tensor:
        return snapshot.loss_fn(functionally_called(snapshot.network, parameters, snapshot.inputs), snapshot.targets)

    return _product(snapshot, lambda parameters, along: jvp(grad(loss), (parameters,), (along,))[1])


def gauss_newton_product(snapshot: Snapshot) -> Product:
    """v ↦ G v for vectors (weight,): forward to the outputs, through the loss's own Hessian, and back.

    Positive semi-definite for losses convex in the outputs. Raises ValueError as `hessian_product` does.
    """

    def outputs(parameters: Parts) -> Tensor:
        return functionally_called(snapshot.network, parameters, snapshot.inputs)

    def loss(values: Tensor) -> Tensor:
        return snapshot.loss_fn(values, snapshot.targets)

    def times(parameters: Parts, along: Parts) -> Parts:
        forward = jvp(outputs, (parameters,), (along,))
        curved = jvp(grad(loss), (forward[0],), (forward[1],))[1]
        back: Callable[[Tensor], tuple[Parts]] = vjp(outputs, parameters)[1]
        return back(curved)[0]

    return _product(snapshot, times)


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
        tolerance: relative error of the eigenvalues, from 0 (as small as rounding allows) to 1. start: where Lanczos
            starts, (weight,), such as the leading vector of a step before; otherwise Gaussian, drawn from ``seed``.

    Raises:
        ValueError: k outside 1 … weights − 1; a start or a product of another length; a product that fails, is NaN or
            infinite, is not symmetric, or is zero at the start, as that of a zero matrix is; a tolerance that was not
            reached.
    """
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    check_callable("product", product, "a function of a vector, as hessian_product returns")
    weights = _weights(snapshot)
    n_weights = len(weights)
    if n_weights < 2:
        raise ValueError("the network has one trainable weight, and its curvature no eigenvectors but that weight")
    check_whole("k", k, None)
    if not 1 <= k < n_weights:
        raise ValueError(f"k must be between 1 and {n_weights - 1}, one less than the weights, got {k}")
    check_number("tolerance", tolerance, least=0, below=1)
    check_seed("seed", seed)
    first = np.random.default_rng(seed).normal(size=n_weights) if start is None else _started(start, n_weights)

    def multiply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        along = torch.from_numpy(np.ascontiguousarray(vector).ravel()).to(weights)
        try:
            image = product(along)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, RuntimeError, AttributeError, IndexError) as error:
            raise ValueError(f"product fails on a vector of {n_weights} weights: {type(error).__name__}") from error
        times = double(image, "what product returns", 1)
        if times.shape != first.shape:
            raise ValueError(f"product must return the shape {first.shape}, got {tuple(times.shape)}")
        return times.cpu().numpy()

    # ARPACK ends where an error is below the tolerance times 4e-11, however small the eigenvalues are: it gets them
    # in units in which they are of the order of 1.
    image = multiply(first)
    if not image.any():
        raise ValueError("the product is zero at the start of Lanczos: there is no dominant eigenvector to find")
    scale = float(power_of_two(torch.from_numpy(image), 1) / power_of_two(torch.from_numpy(first), 1))
    _refuse_asymmetric(multiply, first, image, scale, max(tolerance, PRODUCT_ROUNDING * precision(weights)))
    operator = LinearOperator((n_weights, n_weights), matvec=lambda v: multiply(v) / scale, dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=int(k), which="LA", v0=first, tol=float(tolerance))
    except ArpackError as error:
        raise ValueError(
            f"Lanczos did not reach the tolerance {tolerance:g} for {k} eigenvalues: ask for fewer, or for a larger "
            "tolerance; rounding hides eigenvalues much smaller than the largest"
        ) from error
    values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
    zero = np.abs(values) <= ZERO_ROUNDING * precision(weights) * np.abs(values).max()
    values[zero], vectors[:, zero] = 0.0, 0.0
    return Eigenpairs(in_range(torch.from_numpy(values * scale), "eigenvalues").numpy(), vectors)


def _started(start: NDArray[np.float64], n_weights: int) -> NDArray[np.float64]:
    vector = double(start, "start", 1)
    if vector.shape != (n_weights,):  # ARPACK would read beyond its end.
        raise ValueError(f"start must have the shape ({n_weights},), got {tuple(vector.shape)}")
    if not bool(vector.any()):
        raise ValueError("start must not be zero")
    return (vector / power_of_two(vector, 1)).cpu().numpy()


def _refuse_asymmetric(
    multiply: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    first: NDArray[np.float64],
    image: NDArray[np.float64],
    scale: float,
    allowed: float,
) -> None:
    """Refuses a product unless ⟨u, A v⟩ = ⟨A u, v⟩ for the start u and a random v.

    Lanczos gives wrong pairs for an asymmetric matrix, without an error. Both inner products are of the order of
    ‖u‖ ‖A v‖/√weights, so a relative error ``allowed`` of the matrix changes them by about that share.
    """
    other = np.random.default_rng((len(first), 1)).normal(size=len(first))
    other_image = multiply(other) / scale
    difference = abs(float(first @ other_image) - float(image / scale @ other))
    norm = np.linalg.norm
    largest = norm(first) * norm(other_image) + norm(image / scale) * norm(other)
    if difference > allowed * largest / np.sqrt(len(first)):
        raise ValueError("the product is not symmetric, ⟨u, Av⟩ ≠ ⟨Au, v⟩: it must be that of one symmetric matrix")


def _weights(snapshot: Snapshot) -> Tensor:
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    return torch.cat([layer.weight.flatten() for layer in snapshot.weights])


def _product(snapshot: Snapshot, times: Callable[[Parts, Parts], Parts]) -> Product:
    """``times(parameters, along)``, by parameter name, as a map of vectors in the order of the weight gradients."""
    weights = _weights(snapshot)
    names = [name for layer in snapshot.weights for name in layer.parameter_names]
    parameters = {name: snapshot.network.get_parameter(name).detach() for name in names}

    def product(vector: Tensor) -> Tensor:
        check_kind("vector", vector, Tensor, "a tensor")
        double(vector, "vector", 1)
        if vector.shape != weights.shape:
            raise ValueError(f"vector must have the shape {tuple(weights.shape)}, got {tuple(vector.shape)}")
        parts = vector.detach().to(weights).split([layer.weight.numel() for layer in snapshot.weights])
        along: Parts = {}
        for layer, part in zip(snapshot.weights, parts, strict=True):
            along |= layer.by_parameter(part.view(layer.weight.shape))
        try:
            with plainly(weights.device):
                products = times(parameters, along)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                "the network or its loss has no curvature product: it takes a second derivative in forward mode, "
                "which functions without a rule for it and some fused operations do not have"
            ) from error
        return torch.cat([layer.columns(products).flatten() for layer in snapshot.weights])

    return product
