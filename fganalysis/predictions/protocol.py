"""The closed form of a class of estimators: predictions as functions of a snapshot and an estimator.

    guess(snapshot, estimator)              → Guess          one guess on the whole batch
    averaged(snapshot, estimator, n)        → Guess          the mean of n independent guesses (`Averaged`)
    subsampled(snapshot, estimator, size)   → GuessOnRows    a guess on ``size`` random rows (`Subsampled`)
    needs(estimator)                        → names          what it reads of the snapshot besides gradients and inputs
    second_moment(snapshot, estimator)      → SecondMoment   E ĝĝᵀ at the weights, for the curvature along a guess

Only the first must be given. Two moments of a mean of guesses always follow from those of one guess. A guess on random
rows is unknown unless the closed form covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.guess import Guess, GuessOnRows
from theory.images import ImagedMoment
from theory.progress import SecondMoment
from theory.structured_moment import StructuredMoment

Need = Literal["upstream", "jacobians"]
AtWeights = SecondMoment | StructuredMoment | ImagedMoment


def only_gradients(estimator: Any) -> tuple[Need, ...]:
    """Of a closed form that reads nothing beside gradients and inputs."""
    return ()


@dataclass(frozen=True)
class ClosedForm:
    """The closed form of a class of estimators: see the module's text.

    guess: (snapshot, estimator) → `Guess`. mean_of_several: (snapshot, estimator, n) → `Guess`, where more than two
    moments of a mean of n guesses are known. on_rows: (snapshot, estimator, size) → `GuessOnRows`. needs: estimator →
    names of the snapshot's properties, which refuse a network that does not have them before anything is computed.
    at_weights: (snapshot, estimator) → `theory.progress.SecondMoment`, `theory.structured_moment.StructuredMoment` or
    `theory.images.ImagedMoment`; None where it is not known; a guess that is always the same needs none.
    """

    guess: Callable[[Snapshot, Any], Guess]
    mean_of_several: Callable[[Snapshot, Any, int], Guess] | None = None
    on_rows: Callable[[Snapshot, Any, int], GuessOnRows] | None = None
    needs: Callable[[Any], Sequence[Need]] = only_gradients
    at_weights: Callable[[Snapshot, Any], AtWeights | None] | None = None

    def averaged(self, snapshot: Snapshot, estimator: Any, n_averaged: int) -> Guess:
        if self.mean_of_several is not None:
            return self.mean_of_several(snapshot, estimator, n_averaged)
        return self.guess(snapshot, estimator).averaged(n_averaged)

    def subsampled(self, snapshot: Snapshot, estimator: Any, size: int) -> GuessOnRows:
        return GuessOnRows() if self.on_rows is None else self.on_rows(snapshot, estimator, size)

    def second_moment(self, snapshot: Snapshot, estimator: Any) -> AtWeights | None:
        return None if self.at_weights is None else self.at_weights(snapshot, estimator)


def _nothing_known(snapshot: Snapshot, estimator: Any) -> Guess:
    return Guess()


UNKNOWN = ClosedForm(_nothing_known)
