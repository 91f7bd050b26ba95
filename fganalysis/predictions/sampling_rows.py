"""Closed forms of backpropagation, on the whole batch and on some of its rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import Prediction, double, inputs_of
from fganalysis.predictions.guess import Guess, GuessOnRows
from fganalysis.predictions.linear import with_the_same_slopes
from fganalysis.predictions.protocol import ClosedForm
from theory import feedback, minibatch


def _backpropagation(snapshot: Snapshot, estimator: Any) -> Guess:
    return Guess([feedback.deterministic(gradient) for gradient in double(snapshot.gradients)], certain=True)


def _backpropagation_on_rows(snapshot: Snapshot, estimator: Any, size: int) -> GuessOnRows:
    known = with_the_same_slopes(_backpropagation, snapshot, estimator, size)
    return replace(known, more=partial(_subset_by_subset, snapshot, size))


def _minibatch(snapshot: Snapshot, estimator: estimators.Minibatch) -> Guess:
    size = estimator.size
    moments = [minibatch.gradient_moments(gradient, size) for gradient in double(snapshot.gradients)]
    return Guess(moments, more=partial(_subset_by_subset, snapshot, size))


def _subset_by_subset(snapshot: Snapshot, size: int) -> Prediction:
    """The cosine and the descent of a minibatch's gradient."""
    gradients, inputs = double(snapshot.gradients), inputs_of(snapshot)
    products = [g @ g.T for g in gradients]
    spaces = (
        [np.diag(np.diagonal(product)) for product in products],
        [product * (x @ x.T) for product, x in zip(products, inputs, strict=True)],
    )
    cosines, descents = zip(*(minibatch.cosines_and_descents(space, size) for space in spaces), strict=True)
    return {"cosine": np.stack(cosines), "descent_probability": np.stack(descents)}


BACKPROPAGATION = ClosedForm(_backpropagation, on_rows=_backpropagation_on_rows)
MINIBATCH = ClosedForm(_minibatch)
