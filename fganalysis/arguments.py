"""What callers hand in, checked at the public boundary: one function for each kind of argument.

Each raises ValueError with one sentence that names the argument, says what it must be and what it is. ``None`` is never
accepted: where an argument may be None, the caller asks first.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch

LARGEST_SEED = 2**63 - 1  # The largest whole number that a netCDF attribute holds.
LONGEST_DESCRIPTION = 80


def described(value: object) -> str:
    """A value in a few words of one line, for a message: arrays by shape and type, long texts cut."""
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, torch.Tensor) else "NumPy array"
        return f"a {kind} of shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | int | float | complex | bool | None | Path | np.generic):
        text = repr(value)
    elif isinstance(value, list | tuple | set | dict) and len(value) <= 8:
        # Of a container the types: its elements may be arrays of any size.
        plain = all(isinstance(part, str | int | float | bool | None) for part in value)
        text = repr(value) if plain and not isinstance(value, dict) else f"a {type(value).__name__}"
    else:
        text = getattr(value, "__name__", None) or type(value).__name__
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_DESCRIPTION else text[: LONGEST_DESCRIPTION - 1] + "…"


def check_whole(name: str, value: object, least: int | None = 1, most: int | None = None) -> None:
    """A whole number, NumPy's included, within bounds unless they are None; True is none."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    below = whole is not None and least is not None and whole < least
    above = whole is not None and most is not None and whole > most
    if whole is None or below or above:
        raise ValueError(f"{name} must be a whole number{_bounds(least, most)}, got {described(value)}")


def check_seed(name: str, value: object) -> None:
    """A seed: a whole number from 0 to 2⁶³ − 1."""
    check_whole(name, value, 0)
    if int(value) > LARGEST_SEED:  # type: ignore[call-overload]
        raise ValueError(f"{name} must be below 2**63, which results cannot store, got {described(value)}")


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """A finite real number, NumPy's too, within bounds: exclusive ``above`` and ``below``, inclusive the others."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    inside = (
        math.isfinite(number)
        and (above is None or number > above)
        and (least is None or number >= least)
        and (below is None or number < below)
        and (most is None or number <= most)
    )
    if not inside:
        parts = [("above", above), ("at least", least), ("below", below), ("at most", most)]
        words = " and ".join(f"{word} {bound:g}" for word, bound in parts if bound is not None)
        raise ValueError(f"{name} must be a finite number{' ' + words if words else ''}, got {described(value)}")


def check_flag(name: str, value: object) -> None:
    """True or False: a text such as "no" is true in Python."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {described(value)}")


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """One of a few values."""
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {described(value)}")


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], words: str) -> None:
    """An instance of a class or protocol; ``words`` says what it must be, as in "what fga.capture returns"."""
    # A class has the methods of a protocol too, without being an instance.
    if isinstance(value, type) or not isinstance(value, kinds):
        raise ValueError(f"{name} must be {words}, got {described(value)}")


def check_callable(name: str, value: object, words: str, n_arguments: int | None = None) -> None:
    """A callable that is no class; ``words`` says which, as in "a function of (outputs, targets)".

    With ``n_arguments``, one that takes so many by position, as far as Python knows its signature.
    """
    if not callable(value) or isinstance(value, type) or not (n_arguments is None or _takes(value, n_arguments)):
        raise ValueError(f"{name} must be {words}, got {described(value)}")


def check_names(name: str, value: object, known: Iterable[str] | None = None) -> None:
    """A sequence of texts, at least one, none twice, each of the known ones unless these are None."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray) or not len(value):
        raise ValueError(f"{name} must be a list of names, at least one, got {described(value)}")
    wrong = [part for part in value if not isinstance(part, str)]
    if wrong:
        raise ValueError(f"{name} must be a list of names, got {described(wrong[0])} among them")
    if len(set(value)) < len(value):
        raise ValueError(f"{name} must be different names, got {described(list(value))}")
    allowed = None if known is None else list(known)
    unknown = [part for part in value if allowed is not None and part not in allowed]
    if allowed is not None and unknown:
        raise ValueError(f"{name} has the unknown name {described(unknown[0])}; known ones: {listed(allowed)}")


def check_path(name: str, value: object) -> None:
    """A path that is not empty."""
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ValueError(f"{name} must be a path, got {described(value)}")


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, cut where there are many."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _takes(function: Callable[..., object], n_arguments: int) -> bool:
    # Of a network the signature of __call__ is that of anything.
    called = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # Functions in C need not tell.
        return True
    try:
        signature.bind(*range(n_arguments))
    except TypeError:
        return False
    return True


def _bounds(least: int | None, most: int | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""
