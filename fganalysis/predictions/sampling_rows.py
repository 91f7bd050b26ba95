"""Closed forms of backpropagation, on the whole batch and on some of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import Array, NoClosedForm, Prediction
from fganalysis.predictions.examples import examples_of, gradients_of, gradients_of_examples, layer_is_plain
from fganalysis.predictions.guess import Guess, GuessOnRows
from fganalysis.predictions.linear import check_apart, with_the_same_slopes
from fganalysis.predictions.protocol import ClosedForm
from fganalysis.predictions.weight_maps import at_weights_of, products
from theory import feedback, minibatch
from theory.factors import gram
from theory.images import ImagedMoment
from theory.linear_images import spread, summed


def _backpropagation(snapshot: Snapshot, estimator: Any) -> Guess:
    return Guess([feedback.deterministic(gradient) for gradient in gradients_of(snapshot)], certain=True)


def _backpropagation_on_rows(snapshot: Snapshot, estimator: Any, size: int) -> GuessOnRows:
    known = with_the_same_slopes(_backpropagation, snapshot, estimator, size)
    return replace(known, more=partial(_subset_by_subset, snapshot, size))


def _minibatch(snapshot: Snapshot, estimator: estimators.Minibatch) -> Guess:
    check_apart(snapshot)
    size, gradients, serving = estimator.size, _by_example(snapshot), examples_of(snapshot).serving
    moments = [
        minibatch.summed_moments(g, size) if index in serving else minibatch.gradient_moments(g, size)
        for index, g in enumerate(gradients)
    ]
    parts: list[Array | None] = [None] * len(snapshot.weights)
    why = ""
    for index, layer in enumerate(snapshot.weights):
        if layer.taps and not layer_is_plain(snapshot, index):
            try:
                parts[index] = minibatch.between_rows(products(snapshot, index, gradients), size)
            except NoClosedForm as reason:
                why = str(reason)
    return Guess(moments, more=partial(_subset_by_subset, snapshot, size), parts=parts, why=why)


def _minibatch_second_moment(snapshot: Snapshot, estimator: estimators.Minibatch) -> ImagedMoment:
    check_apart(snapshot)
    gradients, examples = _by_example(snapshot), examples_of(snapshot)

    def of_examples(numbers: Array) -> dict[int, Array]:
        found = spread({index: gradients[index] for index in examples.own}, numbers)
        return found | {index: summed(gradients[index], numbers) for index in examples.serving}

    images = minibatch.images(of_examples, examples.n, estimator.size)
    return at_weights_of(snapshot, images, gradients_of(snapshot))


def _by_example(snapshot: Snapshot) -> list[Array]:
    """Every example's gradient at every tap, (example, number)."""
    serving = examples_of(snapshot).serving
    return [
        gradients_of_examples(snapshot, index) if index in serving else gradient
        for index, gradient in enumerate(gradients_of(snapshot))
    ]


def _subset_by_subset(snapshot: Snapshot, size: int) -> Prediction:
    """The cosine and the descent of a minibatch's gradient."""
    gradients = _by_example(snapshot)
    tapped = [index for index, layer in enumerate(snapshot.weights) if layer.taps]
    shape = (2, len(snapshot.weights) + 1)
    cosines, descents = np.full(shape, np.nan), np.full(shape, np.nan)
    for space in range(2):
        try:
            of_layers = [_products(snapshot, index, gradients, space) for index in tapped]
        except NoClosedForm:
            continue
        cosines[space, [*tapped, -1]], descents[space, [*tapped, -1]] = minibatch.cosines_and_descents(of_layers, size)
    return {"cosine": cosines, "descent_probability": descents}


def _products(snapshot: Snapshot, layer: int, gradients: Sequence[Array], space: int) -> Array:
    """Inner products of two examples' gradients, (example, example); those of different rows are zero."""
    if space:
        return products(snapshot, layer, gradients)
    serving = examples_of(snapshot).serving
    grams = [(gram(gradients[tap]), tap in serving) for tap in snapshot.weights[layer].taps]
    return np.sum([whole if serves else np.diag(np.diagonal(whole)) for whole, serves in grams], axis=0)


BACKPROPAGATION = ClosedForm(_backpropagation, on_rows=_backpropagation_on_rows)
MINIBATCH = ClosedForm(_minibatch, at_weights=_minibatch_second_moment)
