"""Closed forms of the guesses that perturb activations: activity perturbation and activation mixing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import blocks_of, double, jacobians_of, refuse_other_than_plain
from fganalysis.predictions.guess import Guess
from fganalysis.predictions.linear import linear_guess_of, with_example_slopes
from fganalysis.predictions.protocol import ClosedForm, Need, upstream_jacobians
from theory import activation_mixing
from theory.factors import Diagonal


def _activity(snapshot: Snapshot, estimator: estimators.ActivityPerturbation) -> Guess:
    scales = [np.ones(tap.outputs.shape) for tap in snapshot.taps]
    if estimator.active_only:
        scales[:-1] = [(derivative != 0).astype(float) for _, derivative in jacobians_of(snapshot)]
    units = [tap.units for tap in snapshot.taps]
    return linear_guess_of(snapshot, estimator, [Diagonal(scale) for scale in scales], units)


def _needs_of_activity(estimator: estimators.ActivityPerturbation) -> Sequence[Need]:
    """Whether a unit is active is read off the derivative of its activation function."""
    return ("upstream",) if estimator.active_only else ()


def _mixing(snapshot: Snapshot, estimator: estimators.ActivationMixing) -> Guess:
    refuse_other_than_plain(snapshot)
    rotation_invariant = abs(estimator.noise.fourth(8) - 3 * estimator.noise.pair(8)) < 1e-12
    if estimator.normalise and not rotation_invariant:
        return Guess()
    gradients, jacobians = double(snapshot.gradients), jacobians_of(snapshot)
    sizes = [snapshot.n_examples] * len(jacobians) + [snapshot.taps[-1].units]
    return Guess(
        activation_mixing.moments(
            blocks_of(snapshot),
            [g @ weight for g, (weight, _) in zip(gradients[1:], jacobians, strict=True)],
            [derivative for _, derivative in jacobians],
            gradients[-1],
            [estimator.noise.fourth(n) for n in sizes],
            [estimator.noise.pair(n) for n in sizes],
            normalise=estimator.normalise,
            slope=estimator.slope,
            layers=estimator.layers,
        )
    )


ACTIVITY = ClosedForm(_activity, on_rows=partial(with_example_slopes, _activity), needs=_needs_of_activity)
MIXING = ClosedForm(_mixing, needs=upstream_jacobians)
