"""What an estimator is called in the seeds of its noise: a name that outlives the renaming of fields and of labels.

    stable name of an object = name of its class, then place:value for every field that differs from its default

The name of a class is its attribute ``stable_name``, where the class itself has one; otherwise the key under which it
is registered; otherwise its ``__qualname__``. If you rename a key or a class and want the same numbers, write the old
name there: ``stable_name: ClassVar[str] = "activity"``. A subclass does not inherit it, or it would share noise with
its parent. A function has the same attribute or its ``__qualname__``.

Fields enter by their place, so that renaming a field changes no number; nor does a new last field that has its default.
Values enter because two estimators of one comparison must not share noise: their estimates would be correlated, and
nothing would say so.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fganalysis.estimators.names import resolve
from fganalysis.estimators.protocol import Estimator
from fganalysis.estimators.registry import ESTIMATORS


def stable_name(estimator: str | Estimator) -> str:
    """The name that seeds the noise of an estimator, given as a key or an instance: see the module docstring.

    Raises ValueError for an unknown key and for what is no estimator.
    """
    return _of(resolve(estimator))


def _of(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return _digest(value)
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, tuple | list):
        return f"({', '.join(_of(part) for part in value)})"
    # An estimator around another, a law of noise, a state.
    places = ", ".join(f"{place}:{_of(part)}" for place, part in _changed(value))
    return f"{_name(value)}({places})" if places else _name(value)


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)  # A function or a class, else an instance.
    given = getattr(named, "__dict__", {}).get("stable_name")
    keys = {cls: key for key, cls in ESTIMATORS.items()}
    return str(given or keys.get(named, named.__qualname__))


def _changed(value: Any) -> list[tuple[int, Any]]:
    """Place and value of every field that differs from its default."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    parts = [(getattr(value, field.name), field.default) for field in dataclasses.fields(value)]
    return [(place, part) for place, (part, default) in enumerate(parts) if _differs(part, default)]


def _differs(value: Any, default: Any) -> bool:
    # Comparing an array gives an array, which is neither true nor false.
    return value is not default if isinstance(value, torch.Tensor | np.ndarray) else bool(value != default)


def _digest(array: torch.Tensor | np.ndarray) -> str:
    whole = array.detach().cpu().contiguous() if isinstance(array, torch.Tensor) else np.ascontiguousarray(array)
    content = whole.flatten().view(torch.uint8).numpy() if isinstance(whole, torch.Tensor) else whole
    return hashlib.sha256(f"{whole.dtype}{tuple(whole.shape)};".encode() + content.tobytes()).hexdigest()
