"""What an estimator states that a training step with it costs, where it states anything."""

from __future__ import annotations

from typing import Protocol

from fganalysis.arguments import check_kind, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.declarations import declared
from fganalysis.estimators.names import resolve
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.protocol import Estimator

STATEMENT = "passes"


class States(Protocol):
    """An estimator that states what a training step with it costs."""

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes | None:
        """Passes of a step along the mean of ``n_guesses`` guesses, its learning included; None where it states none.

        The number of taps and examples is that of the snapshot.
        """


def passes_of(estimator: str | Estimator, snapshot: Snapshot, n_guesses: int = 1) -> Passes | None:
    """What an estimator states for a step along the mean of ``n_guesses`` guesses; None where it states nothing.

    A subclass of a class of this package has that class's statement, unless it overrides a method.

    Raises:
        ValueError: what is no snapshot, a wrong number of guesses, a statement that is no `Passes`.
    """
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_whole("n_guesses", n_guesses)
    state = declared(resolve(estimator), STATEMENT)
    stated = None if state is None else state(snapshot, int(n_guesses))
    if stated is not None:
        check_kind("what passes() returns", stated, Passes, "a fganalysis.Passes or None")
    return stated
