"""Closed forms of estimators that wrap another, from the closed form of the wrapped estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import NoClosedForm
from fganalysis.predictions.guess import Guess, GuessOnRows
from fganalysis.predictions.protocol import AtWeights, ClosedForm, Need

LookUp = Callable[[Any], ClosedForm]


@dataclass(frozen=True)
class Around:
    """The closed form of a wrapping estimator. ``look_up`` gives that of the wrapped estimator."""

    look_up: LookUp

    def averaged(self, snapshot: Snapshot, estimator: estimators.Averaged) -> Guess:
        """One guess is the guess itself."""
        form, inside, n_averaged = self.look_up(estimator.estimator), estimator.estimator, estimator.n_averaged
        return form.guess(snapshot, inside) if n_averaged == 1 else form.averaged(snapshot, inside, n_averaged)

    def averaged_on_rows(self, snapshot: Snapshot, estimator: estimators.Averaged, size: int) -> GuessOnRows:
        inside = self.look_up(estimator.estimator).subsampled(snapshot, estimator.estimator, size)
        return inside.averaged(estimator.n_averaged)

    def subsampled(self, snapshot: Snapshot, estimator: estimators.Subsampled) -> Guess:
        """All rows are the batch."""
        form, inside = self.look_up(estimator.estimator), estimator.estimator
        if estimator.size == snapshot.n_examples:
            return form.guess(snapshot, inside)
        return form.subsampled(snapshot, inside, estimator.size).guess(snapshot)

    def averaged_at_weights(self, snapshot: Snapshot, estimator: estimators.Averaged) -> AtWeights | None:
        moment = self.look_up(estimator.estimator).second_moment(snapshot, estimator.estimator)
        return None if moment is None else moment.of_mean(estimator.n_averaged)

    def subsampled_at_weights(self, snapshot: Snapshot, estimator: estimators.Subsampled) -> AtWeights | None:
        if estimator.size != snapshot.n_examples:
            raise NoClosedForm("the second moment at the weights is not known of a guess on random rows")
        return self.look_up(estimator.estimator).second_moment(snapshot, estimator.estimator)

    def needs(self, estimator: Any) -> Sequence[Need]:
        return self.look_up(estimator.estimator).needs(estimator.estimator)


def averaged(look_up: LookUp) -> ClosedForm:
    around = Around(look_up)
    return ClosedForm(
        around.averaged, on_rows=around.averaged_on_rows, needs=around.needs, at_weights=around.averaged_at_weights
    )


def subsampled(look_up: LookUp) -> ClosedForm:
    """Unknown: no closed form covers a part of a part of the batch."""
    around = Around(look_up)
    return ClosedForm(around.subsampled, needs=around.needs, at_weights=around.subsampled_at_weights)
