"""At which steps a monitor measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fganalysis.arguments import check_callable, check_kind, check_whole, described

EVERY = 100
Schedule = Callable[[int], bool] | Sequence[int]


def is_due(every: object, schedule: Any) -> Callable[[int], bool]:
    """A function of the step: whether to measure. Takes the arguments of the same names of `fganalysis.Monitor`.

    Raises:
        ValueError: both are given, or one of another kind.
    """
    if schedule is None:
        check_whole("every", EVERY if every is None else every, 1)
        between = EVERY if every is None else int(every)  # type: ignore[call-overload]
        return lambda step: step % between == 0
    if every is not None:
        raise ValueError(f"every and schedule say both when to measure: give one of them, got every={described(every)}")
    if callable(schedule):
        check_callable("schedule", schedule, "a function of the step, or a list of steps", 1)
        return lambda step: bool(schedule(step))
    check_kind("schedule", schedule, (list, tuple, range, set, frozenset), "a function of the step, or a list of steps")
    for step in schedule:
        check_whole("a step of schedule", step, 0)
    steps = frozenset(int(step) for step in schedule)
    return lambda step: step in steps
