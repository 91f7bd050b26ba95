"""Curvature of the network itself: along its gradient, exactly, and its trace, by random directions.

    tr H = E zᵀHz for z with independent entries of mean 0 and variance 1 (Hutchinson 1990)

By Hutch++ (Meyer, Musco, Musco and Woodruff 2021): Q is an orthonormal basis of H applied to a few random directions,
so it has most of a matrix that is mostly of low rank, as the Hessian of a network. Its part of the trace, tr QᵀHQ, is
exact, and what is estimated is the remainder: for any Q,

    H_ii = (H Q Qᵀ)_ii + E z_i (H (I − Q Qᵀ) z)_i        z signs, independent of Q

Given Q, the numbers of different z are independent and identically distributed. So sums of diagonal entries, as the
trace of a layer's block, are means with the interval of a mean. With no more weights than random directions, H is
applied to every axis instead, and everything is exact. No matrix of the weights is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import RADEMACHER
from fganalysis.measuring.blocks import Seeds
from fganalysis.measuring.second_derivatives import Curvature, power_of_two
from fganalysis.predictions.progress import NetworkCurvature
from fganalysis.statistics.intervals import Array, Estimate, mean

SKETCHED = 16  # Directions of Q, at most.
NUMBERS_OF_SKETCH = 2**25  # Of Q and H Q together, at most.
NUMBERS_AT_ONCE = 2**22  # Of the images of a few random directions.
DIRECTIONS_PER_BLOCK = 16  # With a generator of their own: another number gives other random numbers.
SKETCH = 2**31  # The number of the generator of Q's directions; blocks have smaller ones.


@dataclass(frozen=True, eq=False)
class OfNetwork:
    """squared_gradients: ‖G_l‖², (layer,). curvature: for closed forms. exact: whether its traces are."""

    squared_gradients: Array
    curvature: NetworkCurvature
    exact: bool

    @property
    def squared_gradient(self) -> Array:
        """‖G_l‖², (layer,), all layers last."""
        return np.append(self.squared_gradients, self.squared_gradients.sum())

    @property
    def gradient_curvature(self) -> Array:
        """G_lᵀ H_ll G_l, (layer,), gᵀHg last."""
        return np.append(np.diagonal(self.curvature.products), self.curvature.products.sum())

    def trace(self) -> Estimate:
        """tr H_ll, (layer,), tr H last."""
        by_probe = np.concatenate([self.curvature.traces, self.curvature.traces.sum(1, keepdims=True)], axis=1)
        return averaged_over_probes(by_probe.T, self.exact)


def averaged_over_probes(values: Array, exact: bool) -> Estimate:
    """The mean over the last axis, of random directions; without an error where it is exact."""
    if exact:
        value = values[..., 0]
        return Estimate(value, np.zeros_like(value), value, value)
    return mean(values).of_few(values.shape[-1])


def of_network(snapshot: Snapshot, curvature: Curvature, n_directions: int, seed: int) -> OfNetwork:
    """Everything of the network, by a product for each layer and at most ``n_directions`` + 32 more."""
    n_directions = max(n_directions, 2)  # The number of a single one would be taken for an exact number.
    gradients = [gradient.double() for gradient in snapshot.weight_gradients]
    largest = torch.stack([gradient.abs().max() for gradient in gradients]).max()
    unit = float(power_of_two(largest))
    scaled = [gradient / unit for gradient in gradients]
    squares = np.array([float(gradient.square().sum()) for gradient in scaled])
    products = _products(snapshot, curvature, scaled)
    ones = torch.ones(sum(gradient.numel() for gradient in gradients), dtype=torch.float64, device=snapshot.device)
    weighted = torch.cat([gradient.flatten() for gradient in scaled]).square()
    (traces, diagonals), exact = _diagonals(snapshot, curvature, [ones, weighted], n_directions, seed)

    def diagonal(weights: Sequence[Array]) -> Array:
        flat = np.concatenate([part.ravel() for part in weights])
        largest = float(np.abs(flat).max()) or 1.0
        one = torch.from_numpy(flat / largest).to(ones)
        # Products are taken again by the same random directions: kept for every weight they would not fit.
        (found,), _ = _diagonals(snapshot, curvature, [one], n_directions, seed)
        return found.sum(1) * largest

    def forms(vectors: Sequence[Sequence[Array]]) -> Array:
        return _forms(
            snapshot, curvature, np.stack([np.concatenate([part.ravel() for part in vector]) for vector in vectors])
        )

    def images(factors: Array, image: Callable[[Array], Array]) -> Array:
        return _along_images(snapshot, curvature, factors, image, n_directions, seed)

    return OfNetwork(
        squares * unit**2,
        NetworkCurvature(traces, diagonals * unit**2, products * unit**2, forms, diagonal, images),
        exact,
    )


def _forms(snapshot: Snapshot, curvature: Curvature, vectors: Array) -> Array:
    """vᵀHv, (vector,), of vectors (vector, weight)."""
    # Relative to the largest entry, as lengths may be beyond the data type of the network.
    largest = np.abs(vectors).max(1)
    units = np.where(largest > 0, largest, 1.0)
    along = curvature.forms(torch.from_numpy(vectors / units[:, None]).to(snapshot.like)).cpu().numpy()
    return np.where(largest > 0, along * units**2, 0.0)


def _along_images(
    snapshot: Snapshot,
    curvature: Curvature,
    factors: Array,
    image: Callable[[Array], Array],
    n_directions: int,
    seed: int,
) -> Array:
    """Σ_i c_i v_iᵀHv_i: one number where there are no more images than random directions, else one a direction."""
    axes = np.flatnonzero(factors)
    at_once = max(1, min(DIRECTIONS_PER_BLOCK, NUMBERS_AT_ONCE // max(1, len(factors))))
    if len(axes) <= n_directions:
        total = 0.0
        for some in np.array_split(axes, -(-len(axes) // at_once)) if len(axes) else ():
            numbers = np.zeros((len(some), len(factors)))
            numbers[np.arange(len(some)), some] = 1.0
            total += float(factors[some] @ _forms(snapshot, curvature, image(numbers)))
        return np.array([total])
    seeds, found = Seeds(seed, snapshot.step, "curvature along images", snapshot.device), np.zeros(n_directions)
    roots = [(sign, np.sqrt(np.maximum(sign * factors, 0.0))) for sign in (1.0, -1.0)]
    like = torch.empty(0, dtype=torch.float64, device=snapshot.device)
    for index, start in enumerate(range(0, n_directions, at_once)):
        signs = RADEMACHER.draw((at_once, len(factors)), seeds.generator(index), like)
        these = slice(start, start + at_once)
        numbers = signs[: n_directions - start].cpu().numpy()
        for sign, root in roots:
            if root.any():
                found[these] += sign * _forms(snapshot, curvature, image(numbers * root))
    return found


def _products(snapshot: Snapshot, curvature: Curvature, gradients: Sequence[Tensor]) -> Array:
    """G_lᵀ H_ll' G_l', (layer, layer), by a product for each layer."""
    sizes = [gradient.numel() for gradient in gradients]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    rows = []
    for layer in range(len(sizes)):
        alone = [part if index == layer else torch.zeros_like(part) for index, part in enumerate(flat.split(sizes))]
        image = curvature.products(torch.cat(alone).to(snapshot.like)[None])[0].double()
        rows.append([float(part) for part in _by_layer((image * flat)[None], sizes)[0]])
    found = np.array(rows)
    return (found + found.T) / 2


def _diagonals(
    snapshot: Snapshot, curvature: Curvature, weightings: Sequence[Tensor], n_directions: int, seed: int
) -> tuple[list[Array], bool]:
    """Σ_i w_i (H_ll)_ii by random directions, (direction, layer) for each w (weight,), and whether they are exact."""
    sizes = [layer.weight.numel() for layer in snapshot.weights]
    n_weights, like = sum(sizes), snapshot.like
    if n_weights <= n_directions:
        diagonal = torch.zeros(1, n_weights, dtype=torch.float64, device=like.device)
        for some in torch.arange(n_weights).split(DIRECTIONS_PER_BLOCK):
            axes = torch.nn.functional.one_hot(some, n_weights).to(like)
            diagonal[0, some] = (axes * curvature.products(axes)).sum(1).double()
        return [_by_layer(diagonal * weights, sizes).cpu().numpy() for weights in weightings], True
    seeds = Seeds(seed, snapshot.step, "trace of the curvature", snapshot.device)
    basis, image = _sketch(curvature, seeds, like, n_weights)
    known = (basis.double() * image.double()).sum(0, keepdim=True)
    found: list[list[Tensor]] = [[] for _ in weightings]
    for index in range(-(-n_directions // DIRECTIONS_PER_BLOCK)):
        signs = RADEMACHER.draw((DIRECTIONS_PER_BLOCK, n_weights), seeds.generator(index), like)
        signs = signs[: n_directions - index * DIRECTIONS_PER_BLOCK]
        left = (curvature.products(signs) - (signs @ basis.T) @ image).double() * signs + known
        for kept, weights in zip(found, weightings, strict=True):
            kept.append(_by_layer(left * weights, sizes))
    return [torch.cat(kept).cpu().numpy() for kept in found], False


def _sketch(curvature: Curvature, seeds: Seeds, like: Tensor, n_weights: int) -> tuple[Tensor, Tensor]:
    """Q and H Q, (direction, weight); no directions of a network so large that they would not fit."""
    number = min(SKETCHED, NUMBERS_OF_SKETCH // (2 * n_weights))
    if number == 0:
        nothing = like.new_zeros(0, n_weights)
        return nothing, nothing
    signs = RADEMACHER.draw((number, n_weights), seeds.generator(SKETCH), like)
    images = curvature.products(signs)
    # Units in which nothing is too small or too large to square.
    images = images / power_of_two(images.abs().amax(1))[:, None]
    basis = torch.linalg.qr(images.T).Q.T.contiguous()
    return basis, curvature.products(basis)


def _by_layer(numbers: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sums over the weights of each layer, (…, weight) → (…, layer)."""
    return torch.stack([part.sum(-1) for part in numbers.split(list(sizes), dim=-1)], dim=-1)
