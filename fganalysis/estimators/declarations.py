"""What an estimator's class declares about its guess in a method, and whether that holds for a subclass.

A subclass inherits a declaration as long as it changes settings only. Where it overrides a method that the declaring
class has, such as ``__call__``, its guess may be another, and nothing is declared until it has that method too.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


def declared(estimator: Any, name: str) -> Callable[..., Any] | None:
    """The method ``name`` of an estimator's class, bound to it; None where there is none that holds for it."""
    classes = type(estimator).__mro__
    declaring = next((kind for kind in classes if name in vars(kind)), None)
    if declaring is None:
        return None
    of_declaring = {name for kind in declaring.__mro__ if kind is not object for name in _behaviour(kind)}
    below = classes[: classes.index(declaring)]
    if any(of_declaring.intersection(vars(kind)) for kind in below):
        return None
    method: Callable[..., Any] = getattr(estimator, name)
    return method


def _behaviour(kind: type) -> set[str]:
    """Names of what a class computes: its ``__call__``, methods and properties, and not its fields or ``__init__``."""
    computed = types.FunctionType | property | classmethod | staticmethod
    names = {name for name, value in vars(kind).items() if isinstance(value, computed)}
    return {name for name in names if name == "__call__" or not name.startswith("__")}
