"""What theory says of the progress of a step: slope and curvature along a guess, from its second moment at the weights.

A closed form says what it knows of E ĝĝᵀ in its ``second_moment``. A guess that is always the same needs no more than
its mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator
from fganalysis.predictions.arrays import Array, NoClosedForm, double
from fganalysis.predictions.guess import Guess
from fganalysis.predictions.registry import closed_form_of
from fganalysis.predictions.weight_maps import at_weights
from theory import progress as theory
from theory.images import ImagedMoment, OfImages
from theory.structured_moment import StructuredMoment


@dataclass(frozen=True, eq=False)
class NetworkCurvature:
    """What second moments are put together with, of a curvature matrix H of the network's weights.

    Attributes:
        traces: unbiased estimates of tr H_ll, (probe, layer); of one probe where they are exact. diagonals: the same of
            Σ_i G_l,i² (H_ll)_ii. products: G_lᵀ H_ll' G_l', (layer, layer). forms: vᵀHv of vectors,
            (vector,), each given as (unit, input) a layer. diagonal: unbiased estimates of Σ_i w_i H_ii, (probe,), of
            weights w of that shape. images: the same of Σ_i c_i v_iᵀHv_i, given c and how Σ_i z_i v_i (probe, weight)
            is made of z (probe, number).
    """

    traces: Array
    diagonals: Array
    products: Array
    forms: Callable[[Sequence[Sequence[Array]]], Array]
    diagonal: Callable[[Sequence[Array]], Array]
    images: OfImages


@dataclass(frozen=True, eq=False)
class PredictedProgress:
    """⟨ḡ, g⟩, ḡᵀHḡ, and unbiased estimates of E ĝᵀHĝ, (probe,), whose only error is that of random directions."""

    slope: float
    mean_curvature: float
    curvature: Array

    def averaged(self, n_averaged: int) -> Array:
        """E ĝᵀHĝ of the mean of so many guesses, (probe,)."""
        share = 1 / n_averaged
        return share * self.curvature + (1 - share) * self.mean_curvature


def predict_progress(snapshot: Snapshot, estimator: Estimator, of_network: NetworkCurvature) -> PredictedProgress:
    """What follows from the second moment of the guess at the weights.

    Raises:
        NoClosedForm: a guess whose second moment is not known, or a network on which it is not known.
    """
    form, gradients = closed_form_of(estimator), double(snapshot.weight_gradients)
    moment = form.second_moment(snapshot, estimator)
    if isinstance(moment, ImagedMoment):
        along = float(of_network.forms([moment.mean])[0])
        return PredictedProgress(moment.slope(gradients), along, moment.curvature(of_network.images, along))
    if isinstance(moment, StructuredMoment):
        return PredictedProgress(
            moment.slope(gradients),
            float(of_network.forms([moment.mean])[0]),
            moment.curvature(of_network.diagonal, of_network.forms, of_network.images),
        )
    if moment is not None:
        return PredictedProgress(
            moment.slope(np.array([float((gradient**2).sum()) for gradient in gradients])),
            moment.mean_curvature(of_network.products),
            moment.curvature(of_network.traces, of_network.diagonals, of_network.products),
        )
    guess = form.guess(snapshot, estimator)
    if not guess.certain:
        raise NoClosedForm(guess.why or "no closed form of its second moment at the weights is known")
    mean = _at_weights(snapshot, guess)
    along = float(of_network.forms([mean])[0])
    slope = sum(float((a * b).sum()) for a, b in zip(mean, gradients, strict=True))
    return PredictedProgress(slope, along, np.array([along]))


def _at_weights(snapshot: Snapshot, guess: Guess) -> Sequence[Array]:
    if guess.activations is not None:
        return at_weights(snapshot, [moments.mean for moments in guess.activations])
    if guess.weights is None:
        raise NoClosedForm("its mean is not known")
    return guess.weights.means


def best_step(slope: float, curvature: Array) -> Array:
    return theory.best_step(slope, curvature)


def expected_decrease(slope: float, curvature: Array) -> Array:
    return theory.expected_decrease(slope, curvature)


def curved_efficiency(slope: float, curvature: Array, squared_gradient: float, gradient_curvature: float) -> Array:
    return theory.curved_efficiency(slope, curvature, squared_gradient, gradient_curvature)
