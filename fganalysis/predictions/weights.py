"""Closed forms of the guesses made at the weights: weight perturbation and multi-tangent, averaged or subsampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import Gaussian, is_isotropic
from fganalysis.predictions.arrays import Array, Prediction, at_weights, double, inputs_of
from theory import minibatch, multi_tangent, projection, quantities, weight_perturbation


@dataclass(frozen=True, eq=False)
class WeightGuess:
    """A guess made at the weights: E Ĝ_l (unit, input) a tap, and the parts of tr Cov Ĝ_l, (layer,).

    ``between`` is the variance over the rows of a subsampled guess, zero on the whole batch.
    """

    means: list[Array]
    within: Array
    between: Array

    def prediction(self, snapshot: Snapshot) -> Prediction:
        """Quantities over (space, layer), NaN in activation space."""
        spread = self.within + self.between
        return at_weights(quantities.quantities(double(snapshot.weight_gradients), self.means, variances=spread))


def weight_guess(snapshot: Snapshot, estimator: Any, size: int | None = None) -> WeightGuess | None:
    """What an estimator of weight gradients guesses on the batch, or on ``size`` random rows; None where not known.

    Given the rows every second moment here is linear in the squared norms of their gradients, whose expectation is
    ‖G_l‖² plus the minibatch gradient's variance.
    """
    if isinstance(estimator, estimators.Subsampled):
        return None if size is not None else weight_guess(snapshot, estimator.estimator, estimator.size)
    if isinstance(estimator, estimators.Averaged):
        single, n = weight_guess(snapshot, estimator.estimator, size), estimator.n_averaged
        if single is None:
            return None
        # Rows that are drawn once for all guesses do not average out.
        return WeightGuess(single.means, single.within / n, single.between / (n if size is None else 1))
    if not isinstance(estimator, estimators.WeightPerturbation | estimators.MultiTangent):
        return None
    if isinstance(estimator, estimators.MultiTangent):
        estimator.check_dimension([tap.weight.numel() for tap in snapshot.taps])
    gradients, between = double(snapshot.weight_gradients), np.zeros(len(snapshot.taps))
    if size is not None:
        pairs = zip(double(snapshot.gradients), inputs_of(snapshot), strict=True)
        between = np.array([minibatch.variance((g @ g.T) * (x @ x.T), size) for g, x in pairs])
    squares = np.array([float((gradient**2).sum()) for gradient in gradients]) + between
    second = _second_moments(snapshot, estimator, squares, size)
    if second is None:
        return None
    kept = _kept(estimator, [gradient.size for gradient in gradients])
    means = [share * gradient for share, gradient in zip(kept, gradients, strict=True)]
    return WeightGuess(means, np.maximum(second - kept**2 * squares, 0.0), kept**2 * between)


def _kept(estimator: Any, sizes: list[int]) -> Array:
    """E Ĝ_l over G_l, (layer,)."""
    if isinstance(estimator, estimators.WeightPerturbation) or estimator.combine == "mean":
        return np.ones(len(sizes))
    return estimator.k / np.asarray(sizes if estimator.layers == "separate" else [sum(sizes)] * len(sizes), float)


def _second_moments(snapshot: Snapshot, estimator: Any, squares: Array, size: int | None) -> Array | None:
    """E‖Ĝ_l‖² (layer,) from ‖G_l‖² or its expectation over random rows."""
    sizes, layers = [tap.weight.numel() for tap in snapshot.taps], estimator.layers
    law = ([estimator.noise.fourth(n) for n in sizes], [estimator.noise.pair(n) for n in sizes])
    if isinstance(estimator, estimators.WeightPerturbation):
        if estimator.shared:
            return weight_perturbation.second_moments(squares, sizes, *law, layers=layers)
        pairs = zip(double(snapshot.gradients), inputs_of(snapshot), strict=True)
        each = np.array([(g**2).sum(1) * (x**2).sum(1) for g, x in pairs])
        row = 1.0 if size is None else minibatch.inclusion(snapshot.n_examples, size)[0]
        return weight_perturbation.second_moments_per_example(each / row, squares, sizes, *law, layers=layers)
    if estimator.combine == "mean":
        return multi_tangent.second_moments(squares, sizes, estimator.k, *law, layers=layers)
    if isinstance(estimator.noise, Gaussian):
        return projection.second_moments(squares, sizes, estimator.k, layers=layers)
    return None


def weight_directions(estimator: Any, squares: Sequence[float], sizes: Sequence[int]) -> Prediction:
    """Cosine and descent probability (layer + 1,), where a guess at the weights has a law that they are known of.

    Gaussian directions of the whole batch, mean of several or projection. On the sphere only the length is another,
    which a layer with a pass of its own does not feel: each layer's cosine, not that of all layers together.
    """
    single, n_averaged = estimator, 1
    if isinstance(estimator, estimators.Averaged):
        single, n_averaged = estimator.estimator, estimator.n_averaged
    if isinstance(single, estimators.WeightPerturbation) and single.shared:
        k, combine = 1, "mean"
    elif isinstance(single, estimators.MultiTangent):
        k, combine = single.k, single.combine
    else:
        return {}
    layers = single.layers
    if combine == "orthogonal":
        # Lengths do not count in a projection, so the sphere's is the Gaussian's for a layer of its own.
        alike = is_isotropic(single.noise) and (layers == "separate" or type(single.noise) is Gaussian)
        if n_averaged > 1 or not alike:
            return {}
        return {
            "cosine": projection.cosines(squares, sizes, k, layers=layers),
            "descent_probability": projection.descent_probabilities(squares, sizes, k, layers=layers),
        }
    tangents = k * n_averaged
    found = {
        "cosine": multi_tangent.cosines(squares, sizes, tangents, layers=layers),
        "descent_probability": multi_tangent.descent_probabilities(squares, tangents, layers=layers),
    }
    if type(single.noise) is Gaussian:
        return found
    if not is_isotropic(single.noise):
        return {}
    if layers == "joint":
        # Only that t² is positive.
        unknown = {name: np.full_like(values, np.nan) for name, values in found.items()}
        unknown["descent_probability"][-1] = found["descent_probability"][-1]
        return unknown
    found["cosine"][-1 if tangents == 1 else slice(None)] = np.nan
    return found
