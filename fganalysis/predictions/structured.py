"""Closed forms of guesses at the weights whose directions have a structure: low rank, a subspace, scales, guides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.noise import is_isotropic
from fganalysis.estimators.perturbation.weight_directions import Parameter, parameters_of
from fganalysis.predictions.arrays import Array, NoClosedForm, Prediction, at_weights, double
from fganalysis.predictions.guess import Guess, WeightMoments
from fganalysis.predictions.protocol import ClosedForm
from fganalysis.predictions.weight_maps import check_images
from theory import (
    guided_perturbation,
    low_rank_perturbation,
    parameter_blocks,
    scaled_perturbation,
    subspace_perturbation,
)
from theory.images import ByPlace, Images, together
from theory.structured_moment import StructuredMoment, between_blocks

Outer = Iterator[tuple[float, Array]]


@dataclass(frozen=True, eq=False)
class Block:
    """What is known of one independent part of V_l, a parameter or a whole layer.

    Attributes:
        place: puts an array of the block's shape into (unit, input) of its layer, zeros elsewhere. layer: its index.
        mean: E Ĝ_b. squared_slope: E t_b². variances: the diagonal of Σ_b, where Σ_b is diagonal, else None. trace: its
            trace. alone: E t_b²‖V_b‖².
        own: of E t_b² V_bV_bᵀ what is a diagonal, and ``outer`` what is outer products, with that of ``shared``, the
            factor of Σ_b that other blocks give, in it; None where these are not known. images: further outer products,
            images of the block's shape.
    """

    place: Callable[[Array], Array]
    layer: int
    mean: Array
    squared_slope: float
    trace: float
    alone: float
    diagonal: Callable[[float], Array] | None = None
    outer: Callable[[float], Outer] | None = None
    images: Images | None = None


Blocks = Callable[[Snapshot, Any], list[Block]]


def _place(snapshot: Snapshot, layer: int, name: str, shape: tuple[int, ...], array: Array) -> Array:
    of_layer, lead = snapshot.weights[layer], array.shape[:-2]
    by_name = {part.name: torch.zeros((*lead, *part.shape), dtype=torch.float64) for part in parameters_of(of_layer)}
    by_name[name] = torch.from_numpy(np.ascontiguousarray(array)).reshape((*lead, *shape))
    placed: Array = of_layer.columns(by_name).numpy()
    return placed


def _parameters(snapshot: Snapshot) -> Iterator[tuple[int, Parameter, Array, Callable[[Array], Array]]]:
    """Index of the layer, parameter, gradient (row, column) and how an array of it is placed."""
    for index, layer in enumerate(snapshot.weights):
        gradient = torch.from_numpy(double([snapshot.weight_gradients[index]])[0])
        by_name = layer.by_parameter(gradient)
        for part in parameters_of(layer):
            matrix = by_name[part.name].reshape(part.rows, part.columns).numpy()
            yield index, part, matrix, partial(_place, snapshot, index, part.name, part.shape)


def _unstructured(index: int, place: Callable[[Array], Array], gradient: Array, noise: Any) -> Block:
    """A vector, whose direction is one noise vector."""
    square, fourth, pair = float(np.sum(gradient**2)), noise.fourth(gradient.size), noise.pair(gradient.size)

    def diagonal(others: float) -> Array:
        return (others + pair * square) + (fourth - 3 * pair) * gradient**2

    def outer(others: float) -> Outer:
        yield 2 * pair, gradient

    alone = parameter_blocks.unstructured(square, gradient.size, fourth, pair)
    return Block(place, index, gradient, square, float(gradient.size), alone, diagonal, outer)


def _low_rank_blocks(snapshot: Snapshot, estimator: estimators.LowRankPerturbation) -> list[Block]:
    noise, rank, blocks = estimator.noise, int(estimator.rank), []
    for index, part, gradient, place in _parameters(snapshot):
        if not part.is_matrix:
            blocks.append(_unstructured(index, place, gradient, noise))
            continue
        sizes = part.rows * rank, part.columns * rank
        left, right = (low_rank_perturbation.Law(noise.fourth(size), noise.pair(size)) for size in sizes)
        square = float(np.sum(gradient**2))
        alone = low_rank_perturbation.alone(square, part.rows, part.columns, rank, left, right)
        known = left == right == low_rank_perturbation.Law(3.0, 1.0)
        blocks.append(
            Block(
                place,
                index,
                gradient,
                low_rank_perturbation.squared_slope(square),
                float(part.size),
                alone,
                partial(_constant, gradient.shape, square) if known else None,
                partial(_twice_the_gradient, gradient) if known else None,
                low_rank_perturbation.images(gradient, rank) if known else None,
            )
        )
    return blocks


def _constant(shape: tuple[int, ...], square: float, others: float) -> Array:
    return np.full(shape, others + square)


def _twice_the_gradient(gradient: Array, others: float) -> Outer:
    yield 2.0, gradient


def _subspace_blocks(snapshot: Snapshot, estimator: estimators.SubspacePerturbation) -> list[Block]:
    held, noise, blocks = estimator.subspaces(snapshot), estimator.noise, []
    for index, part, gradient, place in _parameters(snapshot):
        if part.name not in held:
            blocks.append(_unstructured(index, place, gradient, noise))
            continue
        left, right = double([held[part.name].left, held[part.name].right])
        scale = held[part.name].scale
        dims = left.shape[1] * right.shape[1]
        fourth, pair = noise.fourth(dims), noise.pair(dims)
        blocks.append(
            Block(
                place,
                index,
                subspace_perturbation.mean(gradient, left, right, scale),
                subspace_perturbation.squared_slope(gradient, left, right, scale),
                subspace_perturbation.trace(left, right, scale),
                subspace_perturbation.alone(gradient, left, right, scale, fourth, pair),
                lambda others, shape=gradient.shape: np.zeros(shape),  # type: ignore[misc]
                partial(_subspace_outer, gradient, left, right, scale, fourth, pair),
            )
        )
    return blocks


def _subspace_outer(
    gradient: Array, left: Array, right: Array, scale: float, fourth: float, pair: float, others: float
) -> Outer:
    yield from subspace_perturbation.vectors(gradient, left, right, scale, fourth, pair, others)


def _scaled_blocks(snapshot: Snapshot, estimator: estimators.ScaledPerturbation) -> list[Block]:
    blocks = []
    pairs = zip(double(snapshot.weight_gradients), double(estimator.variances(snapshot)), strict=True)
    for index, (gradient, variances) in enumerate(pairs):
        fourth, pair = estimator.noise.fourth(gradient.size), estimator.noise.pair(gradient.size)
        slope = scaled_perturbation.squared_slope(gradient, variances)
        blocks.append(
            Block(
                _as_it_is,
                index,
                variances * gradient,
                slope,
                float(variances.sum()),
                scaled_perturbation.alone(gradient, variances, fourth, pair),
                partial(_scaled_diagonal, gradient, variances, fourth, pair, slope),
                partial(_scaled_outer, variances * gradient, pair),
            )
        )
    return blocks


def _as_it_is(array: Array) -> Array:
    return array


def _scaled_diagonal(
    gradient: Array, variances: Array, fourth: float, pair: float, slope: float, others: float
) -> Array:
    return (others + pair * slope) * variances + (fourth - 3 * pair) * (variances * gradient) ** 2


def _scaled_outer(mean: Array, pair: float, others: float) -> Outer:
    yield 2 * pair, mean


def _means(snapshot: Snapshot, blocks: Sequence[Block]) -> list[Array]:
    means = [np.zeros(tuple(layer.weight.shape)) for layer in snapshot.weights]
    for block in blocks:
        means[block.layer] += block.place(block.mean)
    return means


def _of_blocks(blocks_of: Blocks) -> ClosedForm:
    """The closed form of a guess whose direction is made of independent blocks."""

    def guess(snapshot: Snapshot, estimator: Any) -> Guess:
        blocks = blocks_of(snapshot, estimator)
        means = _means(snapshot, blocks)
        slopes, traces, alone, layer_of = zip(
            *((b.squared_slope, b.trace, b.alone, b.layer) for b in blocks), strict=True
        )
        second = parameter_blocks.second_moments(slopes, traces, alone, layer_of, layers=estimator.layers)
        more = partial(_descent, estimator, estimator.layers, slopes, layer_of)
        return Guess(weights=_moments(means, second), more=more)

    def averaged(snapshot: Snapshot, estimator: Any, n_averaged: int) -> Guess:
        return Guess(weights=guess(snapshot, estimator).weights).averaged(n_averaged)

    def second_moment(snapshot: Snapshot, estimator: Any) -> StructuredMoment:
        blocks = blocks_of(snapshot, estimator)
        if any(block.diagonal is None or block.outer is None for block in blocks):
            raise NoClosedForm("the second moment of directions of low rank is known for Gaussian noise alone")
        slopes, layer_of = [block.squared_slope for block in blocks], [block.layer for block in blocks]
        others = parameter_blocks.of_others(slopes, layer_of, estimator.layers)
        means = _means(snapshot, blocks)
        weights = [np.zeros_like(mean) for mean in means]
        for block, elsewhere in zip(blocks, others, strict=True):
            assert block.diagonal is not None
            weights[block.layer] += block.place(block.diagonal(float(elsewhere)))

        def vectors() -> Iterator[tuple[float, Sequence[Array]]]:
            yield from between_blocks(means, estimator.layers)
            for block, elsewhere in zip(blocks, others, strict=True):
                assert block.outer is not None
                # Of the first terms what a block has with itself.
                yield -2.0, _alone(means, block, block.mean)
                for factor, vector in block.outer(float(elsewhere)):
                    yield factor, _alone(means, block, vector)

        return StructuredMoment(weights, vectors, means, _images(blocks, means))

    return ClosedForm(guess, averaged, at_weights=second_moment)


def _images(blocks: Sequence[Block], means: Sequence[Array]) -> Images | None:
    """Those of all blocks, (probe, weight).

    Raises:
        NoClosedForm: too many of them.
    """
    found = []
    for block in blocks:
        if block.images is not None:
            check_images(len(block.images.factors))
            found.append(Images(block.images.factors, partial(_placed, block, block.images)))
    if not found:
        return None
    images = together(found)
    check_images(len(images.factors))

    def written(numbers: Array) -> Array:
        parts, n_probes = images.image(numbers), len(numbers)
        shapes = [(n_probes, *mean.shape) for mean in means]
        whole = [parts.get(index, np.zeros(shape)).reshape(n_probes, -1) for index, shape in enumerate(shapes)]
        return np.concatenate(whole, axis=1)

    return Images(images.factors, written)


def _placed(block: Block, images: Images, numbers: Array) -> ByPlace:
    return {block.layer: block.place(images.image(numbers))}


def _alone(means: Sequence[Array], block: Block, vector: Array) -> list[Array]:
    return [block.place(vector) if index == block.layer else np.zeros_like(m) for index, m in enumerate(means)]


def _moments(means: Sequence[Array], second: Array) -> WeightMoments:
    squares = np.array([float(np.sum(mean**2)) for mean in means])
    return WeightMoments(list(means), np.maximum(second - squares, 0.0), np.zeros(len(means)))


def _descent(estimator: Any, layers: Layers, slopes: Sequence[float], layer_of: Sequence[int]) -> Prediction:
    """⟨ĝ, g⟩ is t², or with a pass for every layer a sum of squares: positive, unless no direction has a slope."""
    n_layers = max(layer_of) + 1
    if not is_isotropic(estimator.noise):
        return {}
    squares = np.bincount(np.asarray(layer_of), weights=np.asarray(slopes))
    each = np.where(squares > 0, 1.0, np.nan) if layers == "separate" else np.full(n_layers, np.nan)
    whole = 1.0 if squares.sum() > 0 else np.nan
    return at_weights({"descent_probability": np.append(each, whole)})


def _guided(snapshot: Snapshot, estimator: estimators.GuidedPerturbation) -> Guess:
    gradients, guides = double(snapshot.weight_gradients), double(estimator.basis(snapshot))
    alpha, noise, k = float(estimator.alpha), estimator.noise, int(estimator.k)
    sizes = [gradient.size for gradient in gradients]
    second = guided_perturbation.second_moments(
        gradients,
        guides,
        alpha,
        [noise.fourth(size) for size in sizes],
        [noise.pair(size) for size in sizes],
        noise.fourth(k),
        noise.pair(k),
    )
    square = guided_perturbation.squared_slope(gradients, guides, alpha)
    # One slope for all layers, as in a joint pass.
    more = partial(_descent, estimator, "joint", [square, *[0.0] * (len(sizes) - 1)], range(len(sizes)))
    return Guess(weights=_moments(guided_perturbation.means(gradients, guides, alpha), second), more=more)


def _guided_averaged(snapshot: Snapshot, estimator: estimators.GuidedPerturbation, n_averaged: int) -> Guess:
    return Guess(weights=_guided(snapshot, estimator).weights).averaged(n_averaged)


def _guided_second_moment(snapshot: Snapshot, estimator: estimators.GuidedPerturbation) -> StructuredMoment:
    """Of Gaussian noise: gᵀΣg Σ + 2 Σg (Σg)ᵀ."""
    laws = {(estimator.noise.fourth(n), estimator.noise.pair(n)) for n in (2, 3)}
    if laws != {(3.0, 1.0)}:
        raise NoClosedForm("the second moment of directions with guides is known for Gaussian noise alone")
    gradients, guides = double(snapshot.weight_gradients), double(estimator.basis(snapshot))
    alpha, k = float(estimator.alpha), int(estimator.k)
    square = guided_perturbation.squared_slope(gradients, guides, alpha)
    means = guided_perturbation.means(gradients, guides, alpha)
    beta = guided_perturbation.spread(alpha, sum(gradient.size for gradient in gradients), k)

    def vectors() -> Iterator[tuple[float, Sequence[Array]]]:
        yield 2.0, means
        for guide in range(k):
            yield square * beta, [part[guide] for part in guides]

    return StructuredMoment([np.full(gradient.shape, square * alpha) for gradient in gradients], vectors, means)


LOW_RANK = _of_blocks(_low_rank_blocks)
SUBSPACE = _of_blocks(_subspace_blocks)
SCALED = _of_blocks(_scaled_blocks)
GUIDED = ClosedForm(_guided, _guided_averaged, at_weights=_guided_second_moment)
