"""predict(): what theory says of an estimator on a snapshot. Only this package reads the package `theory`.

`fganalysis.predictions.registry` says which closed form belongs to which class. An estimator without an entry has no
closed form: its prediction is NaN throughout.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from fganalysis import estimators, metrics
from fganalysis.arguments import check_kind
from fganalysis.capturing.coordinates import coordinates, squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.predictions.arrays import NoClosedForm
from fganalysis.predictions.guess import Guess, GuessOnRows, WeightMoments
from fganalysis.predictions.protocol import ClosedForm
from fganalysis.predictions.registry import CLOSED_FORMS, closed_form_of, register_closed_form
from fganalysis.predictions.upstream_story import story
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate, VarianceParts
from theory.linear_guess import Moments

__all__ = [
    "CLOSED_FORMS",
    "ClosedForm",
    "Guess",
    "GuessOnRows",
    "Moments",
    "WeightMoments",
    "closed_form_of",
    "predict",
    "predict_variance_parts",
    "register_closed_form",
    "story",
]


def predict(snapshot: Snapshot, estimator: str | Estimator) -> xr.Dataset:
    """What theory says of the estimator on this snapshot: the variables of `sample` without errors; NaN where unknown.

    Computed in double precision from the snapshot's arrays by the package `theory`, which shares no code with the
    sampler: where both agree, it is evidence.

    Raises:
        ValueError: what is no snapshot, and what is neither a key nor an instance of an estimator; a network that has
            not what the closed form needs, such as upstream Jacobians.
    """
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    chosen = resolve(estimator)
    form = closed_form_of(chosen)
    for need in form.needs(chosen):
        getattr(snapshot, need)
    try:
        guess = form.guess(snapshot, chosen)
    except NoClosedForm as reason:
        guess = Guess(why=str(reason))
    found = guess.quantities(snapshot)
    for metric in metrics.registered():
        found |= metric.predicted(snapshot, guess)
    grid = (schema.SPACE, schema.LAYER)
    shape = (len(schema.SPACES), len(snapshot.layers) + 1)
    known = schema.variables()
    variables: dict[str, tuple] = {}
    for name in (*schema.QUANTITIES, *schema.EXACT):
        dims = known[name].dims
        values = found.get(name, np.full(shape[len(shape) - len(dims) :], np.nan))
        variables[name] = (dims, values)
    variables["gradient_norm"] = (grid, np.sqrt(squared_gradients(snapshot, guess.weights is None)))
    dataset = xr.Dataset(variables, coords=coordinates(snapshot, label(chosen)))
    if guess.why:
        dataset.attrs[schema.NOT_PREDICTED] = guess.why
    return schema.validate(schema.annotate(dataset))


def predict_variance_parts(estimator: estimators.Subsampled, snapshot: Snapshot) -> VarianceParts:
    """The two parts of the variance that `fganalysis.measuring.variance_parts` measures, in closed form.

    (space, layer), layer "all" last; the standard errors are zero, and NaN stands where no closed form is known.
    """
    check_kind("estimator", estimator, estimators.Subsampled, "a Subsampled, whose variance has two parts")
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    inside = estimator.estimator
    parts = closed_form_of(inside).subsampled(snapshot, inside, estimator.size).parts(snapshot)
    errors = np.where(np.isnan(parts), np.nan, 0.0)
    return VarianceParts(*(Estimate(value, error, value, value) for value, error in zip(parts, errors, strict=True)))
