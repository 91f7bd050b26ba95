"""Closed forms of the guesses that perturb activations: activity perturbation and activation mixing."""

from __future__ import annotations

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import NoClosedForm, blocks_of, double, jacobians_of, refuse_other_than_plain
from fganalysis.predictions.examples import examples_of
from fganalysis.predictions.guess import Guess
from fganalysis.predictions.linear import AlongNoise, along_noise_at, identity, linear_closed_form
from fganalysis.predictions.protocol import ClosedForm
from theory import activation_mixing
from theory.factors import Diagonal


def _activity(snapshot: Snapshot, estimator: estimators.ActivityPerturbation) -> list[AlongNoise]:
    at = _active if estimator.active_only else identity
    return [at(snapshot, index) for index in range(len(snapshot.taps))]


def _active(snapshot: Snapshot, index: int) -> AlongNoise:
    """The units that are alive; at an output tap all of them."""
    tap = snapshot.taps[index]
    if tap.following is None:
        return identity(snapshot, index)
    if tap.derivative is None:
        raise NoClosedForm(f"dead units, which active_only masks, are unknown at tap {tap.name!r}")
    mask = (double([tap.derivative])[0] != 0).astype(np.float64)
    return along_noise_at(snapshot, Diagonal(examples_of(snapshot).vectors(index, mask)), index)


def _mixing(snapshot: Snapshot, estimator: estimators.ActivationMixing) -> Guess:
    refuse_other_than_plain(snapshot)
    rotation_invariant = abs(estimator.noise.fourth(8) - 3 * estimator.noise.pair(8)) < 1e-12
    if estimator.normalise and not rotation_invariant:
        return Guess()
    refuse_other_than_plain(snapshot)
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


ACTIVITY = linear_closed_form(_activity)
MIXING = ClosedForm(_mixing)
