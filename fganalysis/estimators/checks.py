"""Checks of settings and calls that several estimators share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypeVar, cast

import torch

from fganalysis.arguments import check_kind, check_whole
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import Estimates

Call = TypeVar("Call", bound=Callable[..., Estimates])


def guessing(call: Call) -> Call:
    """Decorates the ``__call__`` of an estimator: checks its three arguments, and turns autocast off during the call.

    Raises:
        ValueError: where the arguments are not a snapshot, a whole number of at least 1 and a generator.
    """

    @wraps(call)
    def checked(self: Any, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        check_call(snapshot, n_guesses, generator)
        with full_precision(snapshot):
            return call(self, snapshot, int(n_guesses), generator)

    return cast(Call, checked)


def check_call(snapshot: object, n_guesses: object, generator: object) -> None:
    """Raises ValueError for wrong arguments of an estimator."""
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_whole("n_guesses", n_guesses)
    check_kind("generator", generator, torch.Generator, "a torch.Generator")


def check_rank(k: int | Literal["rank"], most: int) -> None:
    """Raises ValueError when k is above ``most``, the highest rank of any tap's and example's upstream Jacobian."""
    if k != "rank" and most < k:
        raise ValueError(f"k={k} is above the rank of every upstream Jacobian, at most {most} here")
