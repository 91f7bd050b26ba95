"""predict(): what theory says of an estimator on a snapshot. Only this package reads the package `theory`.

`PREDICTIONS` says, for each class of estimator, how its closed form is asked for. An estimator without an entry has no
closed form: its prediction is NaN throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from fganalysis import estimators
from fganalysis.arguments import check_kind
from fganalysis.capturing.coordinates import coordinates, squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.predictions.activations import moments_of, subsampled_pairs
from fganalysis.predictions.arrays import Prediction, at_weights, double, inputs_of, quantities_of
from fganalysis.predictions.directions import linear, orthogonal_guess
from fganalysis.predictions.upstream_story import story
from fganalysis.predictions.weights import weight_directions, weight_guess
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate, VarianceParts
from theory import minibatch

__all__ = ["PREDICTIONS", "predict", "predict_variance_parts", "story"]


def predict(snapshot: Snapshot, estimator: str | Estimator) -> xr.Dataset:
    """What theory says of the estimator on this snapshot: the variables of `sample` without errors; NaN where unknown.

    Computed in double precision from the snapshot's arrays by the package `theory`, which shares no code with the
    sampler: where both agree, it is evidence.

    Raises:
        ValueError: what is no snapshot, and what is neither a key nor an instance of an estimator.
    """
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    chosen = resolve(estimator)
    found = PREDICTIONS.get(type(chosen), _no_closed_form)(snapshot, chosen)
    grid = (schema.SPACE, schema.LAYER)
    shape = (len(schema.SPACES), len(snapshot.taps) + 1)
    known = schema.variables()
    variables: dict[str, tuple] = {}
    for name in (*schema.QUANTITIES, *schema.EXACT):
        dims = known[name].dims
        values = found.get(name, np.full(shape[len(shape) - len(dims) :], np.nan))
        variables[name] = (dims, values)
    variables["gradient_norm"] = (grid, np.sqrt(squared_gradients(snapshot)))
    dataset = xr.Dataset(variables, coords=coordinates(snapshot, label(chosen)))
    return schema.validate(schema.annotate(dataset))


def predict_variance_parts(estimator: estimators.Subsampled, snapshot: Snapshot) -> VarianceParts:
    """The two parts of the variance that `fganalysis.measuring.variance_parts` measures, in closed form.

    (space, layer), layer "all" last; the standard errors are zero, and NaN stands where no closed form is known.
    """
    check_kind("estimator", estimator, estimators.Subsampled, "a Subsampled, whose variance has two parts")
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    found = np.full((2, len(schema.SPACES), len(snapshot.taps) + 1), np.nan)
    pairs, guess = subsampled_pairs(snapshot, estimator), weight_guess(snapshot, estimator)
    if pairs is not None:
        for index, (pair, x) in enumerate(zip(pairs, inputs_of(snapshot), strict=True)):
            for space, kernel in enumerate((None, x @ x.T)):
                parts = minibatch.parts(*pair, estimator.size, kernel)
                found[:, space, index] = parts.within, parts.between
    elif guess is not None:
        found[:, 1, :-1] = guess.within, guess.between
    found[..., -1] = found[..., :-1].sum(-1)
    errors = np.where(np.isnan(found), np.nan, 0.0)
    return VarianceParts(*(Estimate(value, error, value, value) for value, error in zip(found, errors, strict=True)))


def _no_closed_form(snapshot: Snapshot, estimator: Any) -> Prediction:
    return {}


def _backpropagation(snapshot: Snapshot, estimator: estimators.Backpropagation) -> Prediction:
    ones = np.ones((len(schema.SPACES), len(snapshot.taps) + 1))
    return _from_moments(snapshot, estimator) | {"cosine": ones, "descent_probability": ones}


def _upstream(snapshot: Snapshot, estimator: estimators.Upstream) -> Prediction:
    return _from_moments(snapshot, estimator) if estimator.normalise else linear(snapshot, estimator)


def _at_weights(snapshot: Snapshot, estimator: Any) -> Prediction:
    """Two moments, and what is known beside of the cosine and of descent."""
    found = _from_moments(snapshot, estimator)
    sizes = [tap.weight.numel() for tap in snapshot.taps]
    squares = [float((gradient**2).sum()) for gradient in double(snapshot.weight_gradients)]
    return found | at_weights(weight_directions(estimator, squares, sizes))


def _minibatch(snapshot: Snapshot, estimator: Any) -> Prediction:
    """Two moments, and the cosine and descent of a minibatch's gradient, subset by subset."""
    gradients, inputs = double(snapshot.gradients), inputs_of(snapshot)
    products = [g @ g.T for g in gradients]
    spaces = (
        [np.diag(np.diagonal(one)) for one in products],
        [one * (x @ x.T) for one, x in zip(products, inputs, strict=True)],
    )
    cosines, descents = zip(*(minibatch.cosines_and_descents(one, estimator.size) for one in spaces), strict=True)
    found = {"cosine": np.stack(cosines), "descent_probability": np.stack(descents)}
    return _from_moments(snapshot, estimator) | found


def _averaged(snapshot: Snapshot, estimator: estimators.Averaged) -> Prediction:
    """The mean of weight perturbations is one of as many tangents; one guess is the guess itself."""
    if estimator.n_averaged == 1:
        return PREDICTIONS.get(type(estimator.estimator), _no_closed_form)(snapshot, estimator.estimator)
    return _at_weights(snapshot, estimator)


def _subsampled(snapshot: Snapshot, estimator: estimators.Subsampled) -> Prediction:
    if isinstance(estimator.estimator, estimators.Backpropagation):
        return _minibatch(snapshot, estimator)
    if estimator.size == snapshot.n_examples:
        return PREDICTIONS.get(type(estimator.estimator), _no_closed_form)(snapshot, estimator.estimator)
    return _from_moments(snapshot, estimator)


def _from_moments(snapshot: Snapshot, estimator: Any) -> Prediction:
    """Whatever follows from two moments, of the guess at the activations or, where there is none, at the weights."""
    moments = moments_of(snapshot, estimator)
    if moments is not None:
        return quantities_of(snapshot, moments)
    guess = weight_guess(snapshot, estimator)
    return {} if guess is None else guess.prediction(snapshot)


def _never_random(snapshot: Snapshot, estimator: Any) -> Prediction:
    """For guesses that are all alike the cosine and the descent follow as well; not for FDFA's histories."""
    found = _from_moments(snapshot, estimator)
    learned = isinstance(estimator, estimators.ForwardDirectFeedback | estimators.ForwardDirectFeedbackAdam)
    if not found or (learned and estimator.steps):
        return found
    along = found["shrinkage"]
    cosines = np.where(along == 0, 0.0, np.sign(along) * np.sqrt(found["efficiency"]))
    return found | {"cosine": cosines, "descent_probability": np.where(np.isnan(along), np.nan, along > 0)}


PREDICTIONS: dict[type, Callable[[Snapshot, Any], Prediction]] = {
    estimators.Backpropagation: _backpropagation,
    estimators.WeightPerturbation: _at_weights,
    estimators.ActivityPerturbation: linear,
    estimators.Upstream: _upstream,
    estimators.OrthogonalUpstream: orthogonal_guess,
    estimators.NewtonSchulzUpstream: linear,
    estimators.PreconditionedUpstream: linear,
    estimators.ActivationMixing: _from_moments,
    estimators.MultiTangent: _at_weights,
    estimators.FeedbackAlignment: _never_random,
    estimators.DirectFeedback: _never_random,
    estimators.ForwardDirectFeedback: _never_random,
    estimators.ForwardDirectFeedbackAdam: _never_random,
    estimators.LocalLoss: _never_random,
    estimators.Minibatch: _minibatch,
    estimators.Averaged: _averaged,
    estimators.Subsampled: _subsampled,
}
