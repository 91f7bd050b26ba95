"""Closed forms of all guesses along y = A ε, from the factors A alone, whatever the family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import Gaussian, is_isotropic
from fganalysis.predictions.arrays import Prediction, double, inputs_of
from fganalysis.predictions.guess import Guess, GuessOnRows
from theory import batch_cosine, descent, linear_guess
from theory.factors import Diagonal, Factor
from theory.linear_guess import Moments
from theory.spectrum import spectrum


def identity(snapshot: Snapshot) -> Diagonal:
    """A = I of the output tap, where the direction of every family is the noise itself."""
    return Diagonal(np.ones(snapshot.taps[-1].outputs.shape))


def linear_guess_of(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor], noise_units: Sequence[int]) -> Guess:
    """The guess along A ε, A given tap by tap. noise_units: entries of one noise vector, tap by tap."""
    return Guess(
        linear_moments(snapshot, estimator, factors, noise_units),
        more=partial(distributional, snapshot, estimator, factors),
        factors=factors,
    )


def linear_moments(
    snapshot: Snapshot, estimator: Any, factors: Sequence[Factor], noise_units: Sequence[int]
) -> list[Moments]:
    return linear_guess.moments(
        double(snapshot.gradients),
        factors,
        [estimator.noise.fourth(n) for n in noise_units],
        [estimator.noise.pair(n) for n in noise_units],
        shared=estimator.shared,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def with_example_slopes(
    guess: Callable[[Snapshot, Any], Guess], snapshot: Snapshot, estimator: Any, size: int
) -> GuessOnRows:
    """The guess on random rows, unless examples share both noise and slope: then second moments sum over four rows."""
    if estimator.shared and estimator.slope == "batch":
        return GuessOnRows()
    return on_rows(guess, snapshot, estimator, replace(estimator, slope="example"), size)


def with_the_same_slopes(
    guess: Callable[[Snapshot, Any], Guess], snapshot: Snapshot, estimator: Any, size: int
) -> GuessOnRows:
    """Of an estimator whose guess on some rows is that part of its guess on the batch."""
    return on_rows(guess, snapshot, estimator, estimator, size)


def on_rows(
    guess: Callable[[Snapshot, Any], Guess], snapshot: Snapshot, estimator: Any, by_example: Any, size: int
) -> GuessOnRows:
    """From the guess on the batch and the guess of ``by_example``, the same with a slope for each example."""
    whole, alone = (guess(snapshot, given).activations for given in (estimator, by_example))
    if whole is None or alone is None:
        return GuessOnRows()
    return GuessOnRows(list(zip(whole, alone, strict=True)), size=size)


def distributional(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor]) -> Prediction:
    """The quantities that need more than two moments: the descent probability and the mean cosine.

    The cosine has a closed form for independent noise and example slopes, in activation space only, because in weight
    space one norm contains the directions of all examples. For a batch of one example it is known in both spaces, and
    of the switches only ``layers`` matters. Noise on the sphere differs from Gaussian noise in its length only. This
    does not change the cosine of a single example and layer in a separate pass, nor that t² is not negative.
    """
    if not is_isotropic(estimator.noise):
        return {}
    gradients, inputs, layers = double(snapshot.gradients), inputs_of(snapshot), estimator.layers
    alone = snapshot.n_examples == 1
    shape = (2, len(factors) + 1)
    cosines, descents = np.full(shape, np.nan), np.full(shape, np.nan)
    squares = [float((gradient**2).sum()) for gradient in gradients]
    if alone or (not estimator.shared and estimator.slope == "example"):
        spectra = [spectrum(factor, gradient) for factor, gradient in zip(factors, gradients, strict=True)]
        cosines[0] = batch_cosine.activation_cosines(spectra, squares, layers=layers)
        if alone:
            weights = [float((x**2).sum()) for x in inputs]
            cosines[1] = batch_cosine.of_one_example(spectra, weights, squares, layers=layers)
    for space, kernels in enumerate((None, [x @ x.T for x in inputs])):
        descents[space] = descent.descent_probability(
            gradients, factors, kernels, shared=estimator.shared, slope=estimator.slope, layers=layers
        )
    if type(estimator.noise) is not Gaussian:
        own_pass = layers == "separate"
        certain = np.zeros(shape, bool)
        certain[0, slice(None) if own_pass else -1] = True
        certain[1] = alone and own_pass
        descents[~certain] = np.nan
        cosines[:, slice(-1, None) if alone and own_pass else slice(None)] = np.nan
    return {"cosine": cosines, "descent_probability": descents}
