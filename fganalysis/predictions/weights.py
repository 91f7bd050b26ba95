"""Closed forms of the guesses made at the weights: weight perturbation, its sparse variant and multi-tangent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import Gaussian, is_isotropic
from fganalysis.predictions.arrays import Array, NoClosedForm, Prediction, at_weights, double, inputs_of
from fganalysis.predictions.examples import examples_of, gradients_of
from fganalysis.predictions.guess import Guess, GuessOnRows, WeightMoments
from fganalysis.predictions.protocol import UNKNOWN, AtWeights, ClosedForm
from fganalysis.predictions.weight_maps import products
from theory import minibatch, multi_tangent, progress, projection, sparse_perturbation, weight_perturbation
from theory.progress import SecondMoment
from theory.structured_moment import StructuredMoment


@dataclass(frozen=True, eq=False)
class Layers:
    """What second moments are made of: ‖G_l‖², or its expectation over ``size`` random rows, and the noise's law.

    squares: (layer,). between: the minibatch gradient's variance, (layer,), zero on the whole batch. sizes: weights of
    each layer. law: E ε⁴ and E ε_i² ε_j², a layer each.
    """

    snapshot: Snapshot
    squares: Array
    between: Array
    sizes: Sequence[int]
    law: tuple[list[float], list[float]]
    size: int | None


SecondMoments = Callable[[Layers, Any], Array | None]
Distribution = Callable[[Any, Sequence[float], Sequence[int], int], Prediction]


def _layers(snapshot: Snapshot, estimator: Any, size: int | None) -> Layers:
    gradients, between = double(snapshot.weight_gradients), np.zeros(len(snapshot.weights))
    if size is not None:
        if snapshot.untapped_parameters or examples_of(snapshot).serving or not examples_of(snapshot).apart:
            raise NoClosedForm(
                "the gradient of some examples is unknown for parameters of no tap, for rows that serve all examples "
                "and where examples interact"
            )
        vectors = gradients_of(snapshot)
        grams = [products(snapshot, index, vectors) for index in range(len(snapshot.weights))]
        between = np.array([minibatch.variance(gram, size) for gram in grams])
    squares = np.array([float((gradient**2).sum()) for gradient in gradients]) + between
    sizes = [layer.weight.numel() for layer in snapshot.weights]
    law = ([estimator.noise.fourth(n) for n in sizes], [estimator.noise.pair(n) for n in sizes])
    return Layers(snapshot, squares, between, sizes, law, size)


def _moments(
    second_moments: SecondMoments, kept: Array, snapshot: Snapshot, estimator: Any, size: int | None
) -> WeightMoments | None:
    """Two moments on the batch, or on ``size`` random rows; None where not known. kept: E Ĝ_l over G_l, (layer,).

    Given the rows every second moment here is linear in the squared norms of their gradients, whose expectation is
    ‖G_l‖² plus the minibatch gradient's variance.
    """
    layers = _layers(snapshot, estimator, size)
    second = second_moments(layers, estimator)
    if second is None:
        return None
    means = [share * gradient for share, gradient in zip(kept, double(snapshot.weight_gradients), strict=True)]
    within = np.maximum(second - kept**2 * layers.squares, 0.0)
    return WeightMoments(means, within, kept**2 * layers.between)


def _of_weight_perturbation(layers: Layers, estimator: estimators.WeightPerturbation) -> Array:
    if estimator.shared:
        return weight_perturbation.second_moments(layers.squares, layers.sizes, *layers.law, layers=estimator.layers)
    pairs = zip(double(layers.snapshot.gradients), inputs_of(layers.snapshot), strict=True)
    each = np.array([(g**2).sum(1) * (x**2).sum(1) for g, x in pairs])
    row = 1.0 if layers.size is None else minibatch.inclusion(layers.snapshot.n_examples, layers.size)[0]
    return weight_perturbation.second_moments_per_example(
        each / row, layers.squares, layers.sizes, *layers.law, layers=estimator.layers
    )


def _sparse(layers: Layers, estimator: estimators.SparsePerturbation) -> Layers:
    """With the law of the noise behind its masks."""
    keep, keep_layers = float(estimator.keep), float(estimator.keep_layers)
    fourth = [sparse_perturbation.fourth(number, keep, keep_layers) for number in layers.law[0]]
    return replace(layers, law=(fourth, [sparse_perturbation.pair(number, keep_layers) for number in layers.law[1]]))


def _of_sparse(layers: Layers, estimator: estimators.SparsePerturbation) -> Array:
    masked = _sparse(layers, estimator)
    return weight_perturbation.second_moments(masked.squares, masked.sizes, *masked.law, layers=estimator.layers)


def _of_multi_tangent(layers: Layers, estimator: estimators.MultiTangent) -> Array | None:
    k = estimator.k
    if estimator.combine == "mean":
        return multi_tangent.second_moments(layers.squares, layers.sizes, k, *layers.law, layers=estimator.layers)
    if isinstance(estimator.noise, Gaussian):
        return projection.second_moments(layers.squares, layers.sizes, k, layers=estimator.layers)
    return None


def _weight_moments(
    snapshot: Snapshot, estimator: estimators.WeightPerturbation, size: int | None = None
) -> WeightMoments | None:
    return _moments(_of_weight_perturbation, np.ones(len(snapshot.weights)), snapshot, estimator, size)


def _sparse_moments(
    snapshot: Snapshot, estimator: estimators.SparsePerturbation, size: int | None = None
) -> WeightMoments | None:
    return _moments(_of_sparse, np.ones(len(snapshot.weights)), snapshot, estimator, size)


def _tangent_moments(
    snapshot: Snapshot, estimator: estimators.MultiTangent, size: int | None = None
) -> WeightMoments | None:
    """A projection on k random directions keeps k/n of the gradient, the mean of k tangents all of it."""
    sizes = [layer.weight.numel() for layer in snapshot.weights]
    estimator.check_dimension(sizes)
    kept = np.ones(len(sizes))
    if estimator.combine == "orthogonal":
        kept = estimator.k / np.asarray(sizes if estimator.layers == "separate" else [sum(sizes)] * len(sizes), float)
    return _moments(_of_multi_tangent, kept, snapshot, estimator, size)


def _weight_distribution(
    estimator: estimators.WeightPerturbation, squares: Sequence[float], sizes: Sequence[int], n_averaged: int
) -> Prediction:
    """A mean of n guesses is that of n tangents."""
    return _of_tangents(estimator, squares, sizes, n_averaged) if estimator.shared else {}


def _tangent_distribution(
    estimator: estimators.MultiTangent, squares: Sequence[float], sizes: Sequence[int], n_averaged: int
) -> Prediction:
    if estimator.combine == "mean":
        return _of_tangents(estimator, squares, sizes, estimator.k * n_averaged)
    # Lengths do not count in a projection, so the sphere's is the Gaussian's for a layer of its own.
    alike = is_isotropic(estimator.noise) and (estimator.layers == "separate" or type(estimator.noise) is Gaussian)
    if n_averaged > 1 or not alike:
        return {}
    k, layers = estimator.k, estimator.layers
    return {
        "cosine": projection.cosines(squares, sizes, k, layers=layers),
        "descent_probability": projection.descent_probabilities(squares, sizes, k, layers=layers),
    }


def _no_distribution(
    estimator: estimators.SparsePerturbation, squares: Sequence[float], sizes: Sequence[int], n_averaged: int
) -> Prediction:
    """A guess whose masks leave no weight is zero, and the others' lengths depend on the masks."""
    return {}


def _of_tangents(estimator: Any, squares: Sequence[float], sizes: Sequence[int], tangents: int) -> Prediction:
    """Cosine and descent probability (layer + 1,) of the mean of so many tangents of the whole batch.

    On the sphere only the length is another than with Gaussian noise, which a layer with a pass of its own does not
    feel: each layer's cosine, not that of all layers together.
    """
    layers = estimator.layers
    known = {
        "cosine": multi_tangent.cosines(squares, sizes, tangents, layers=layers),
        "descent_probability": multi_tangent.descent_probabilities(squares, tangents, layers=layers),
    }
    if type(estimator.noise) is Gaussian:
        return known
    if not is_isotropic(estimator.noise):
        return {}
    if layers == "joint":
        # Only that t² is positive.
        unknown = {name: np.full_like(values, np.nan) for name, values in known.items()}
        unknown["descent_probability"][-1] = known["descent_probability"][-1]
        return unknown
    known["cosine"][-1 if tangents == 1 else slice(None)] = np.nan
    return known


def _weight_second_moment(
    snapshot: Snapshot, estimator: estimators.WeightPerturbation
) -> SecondMoment | StructuredMoment:
    layers = _layers(snapshot, estimator, None)
    if estimator.shared:
        return progress.weight_perturbation(layers.squares, *layers.law, layers=estimator.layers)
    pairs = list(zip(double(snapshot.gradients), inputs_of(snapshot), strict=True))
    return weight_perturbation.second_moment_per_example(pairs, *layers.law, layers=estimator.layers)


def _difference_second_moment(snapshot: Snapshot, estimator: estimators.FiniteDifference) -> SecondMoment:
    """That of a loss which is quadratic over ±εz, and without rounding: there a central difference is the slope."""
    if not estimator.central:
        raise NoClosedForm("a one-sided difference has (ε/2) zᵀHz beside the slope, whose sixth moments are not known")
    layers = _layers(snapshot, estimator, None)
    return progress.weight_perturbation(layers.squares, *layers.law, layers="joint")


def _sparse_second_moment(snapshot: Snapshot, estimator: estimators.SparsePerturbation) -> SecondMoment:
    masked = _sparse(_layers(snapshot, estimator, None), estimator)
    return progress.weight_perturbation(masked.squares, *masked.law, layers=estimator.layers)


def _tangent_second_moment(snapshot: Snapshot, estimator: estimators.MultiTangent) -> SecondMoment:
    layers = _layers(snapshot, estimator, None)
    if estimator.combine == "mean":
        single = progress.weight_perturbation(layers.squares, *layers.law, layers=estimator.layers)
        return single.of_mean(estimator.k)
    if isinstance(estimator.noise, Gaussian):
        return progress.projection(layers.squares, layers.sizes, estimator.k, layers=estimator.layers)
    raise NoClosedForm("of a projection on random directions it is known for Gaussian noise alone")


def _known(
    moments: Callable[..., WeightMoments | None],
    distribution: Distribution,
    second_moment: Callable[[Snapshot, Any], AtWeights],
) -> ClosedForm:
    """The closed form of a guess at the weights, from its moments and its distribution."""

    def more(snapshot: Snapshot, estimator: Any, n_averaged: int) -> Prediction:
        sizes = [layer.weight.numel() for layer in snapshot.weights]
        squares = [float((gradient**2).sum()) for gradient in double(snapshot.weight_gradients)]
        return at_weights(distribution(estimator, squares, sizes, n_averaged))

    def guess(snapshot: Snapshot, estimator: Any) -> Guess:
        return Guess(weights=moments(snapshot, estimator), more=partial(more, snapshot, estimator, 1))

    def averaged(snapshot: Snapshot, estimator: Any, n_averaged: int) -> Guess:
        mean = Guess(weights=moments(snapshot, estimator)).averaged(n_averaged)
        return Guess(weights=mean.weights, more=partial(more, snapshot, estimator, n_averaged))

    def on_rows(snapshot: Snapshot, estimator: Any, size: int) -> GuessOnRows:
        return GuessOnRows(weights=moments(snapshot, estimator, size), size=size)

    return ClosedForm(guess, averaged, on_rows, at_weights=second_moment)


# Moments by themselves would need the third derivative of the loss.
DIFFERENCE = replace(UNKNOWN, at_weights=_difference_second_moment)
WEIGHT = _known(_weight_moments, _weight_distribution, _weight_second_moment)
SPARSE = _known(_sparse_moments, _no_distribution, _sparse_second_moment)
MULTI_TANGENT = _known(_tangent_moments, _tangent_distribution, _tangent_second_moment)
