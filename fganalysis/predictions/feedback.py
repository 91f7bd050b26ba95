"""Closed forms of the feedback family, whose guesses are deterministic given their matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import Array, double, jacobians_of, refuse_other_than_plain
from fganalysis.predictions.guess import Guess, GuessOnRows
from fganalysis.predictions.linear import with_the_same_slopes
from fganalysis.predictions.protocol import ClosedForm, upstream_jacobians
from theory import feedback


def _fixed(law: Callable[..., list[Array]], snapshot: Snapshot, estimator: Any) -> Guess:
    """Deterministic, given the matrices."""
    refuse_other_than_plain(snapshot)
    derivatives = [derivative for _, derivative in jacobians_of(snapshot)]
    guesses = law(derivatives, double(snapshot.gradients)[-1], double(estimator.matrices(snapshot)))
    return Guess([feedback.deterministic(guess) for guess in guesses], certain=True)


def _learned(snapshot: Snapshot, estimator: estimators.ForwardDirectFeedback) -> Guess:
    refuse_other_than_plain(snapshot)
    started = estimator.feedback
    if started and len(started[0]) > 1:
        return Guess()
    weights, derivatives = [w for w, _ in jacobians_of(snapshot)], [d for _, d in jacobians_of(snapshot)]
    units = [tap.units for tap in snapshot.taps[:-1]]
    laws = feedback.forward_direct_feedback(
        feedback.output_jacobians(weights, derivatives),
        derivatives,
        double(snapshot.gradients)[-1],
        estimator.rate,
        estimator.steps,
        initial=None if started is None else [matrix[0] for matrix in double(started)],
        fourth=[estimator.noise.fourth(n) for n in units],
        pair=[estimator.noise.pair(n) for n in units],
    )
    # If the matrices learn within the guess, every guess has a different history of matrices.
    return Guess([law.moments() for law in laws], certain=estimator.steps == 0)


def _adam(snapshot: Snapshot, estimator: estimators.ForwardDirectFeedbackAdam) -> Guess:
    if estimator.steps:
        return Guess()
    matrices = None if estimator.optimiser is None else estimator.optimiser.values
    return _learned(snapshot, estimators.ForwardDirectFeedback(feedback=matrices))


def _on_rows(guess: Callable[[Snapshot, Any], Guess], snapshot: Snapshot, estimator: Any, size: int) -> GuessOnRows:
    """Feedback that is learned within the guess mixes the rows."""
    return GuessOnRows() if estimator.steps else with_the_same_slopes(guess, snapshot, estimator, size)


_chained = partial(_fixed, feedback.chained_feedback)
_direct = partial(_fixed, feedback.direct_feedback)

FEEDBACK_ALIGNMENT, DIRECT_FEEDBACK = (
    ClosedForm(guess, on_rows=partial(with_the_same_slopes, guess), needs=upstream_jacobians)
    for guess in (_chained, _direct)
)
FORWARD_DIRECT_FEEDBACK = ClosedForm(_learned, on_rows=partial(_on_rows, _learned), needs=upstream_jacobians)
FORWARD_DIRECT_FEEDBACK_ADAM = replace(FORWARD_DIRECT_FEEDBACK, guess=_adam, on_rows=partial(_on_rows, _adam))
