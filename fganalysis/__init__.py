"""fganalysis measures gradient estimators: bias, variance and cosine with honest intervals, beside their theory.

The public names, listed in `fganalysis.public_names`, are imported when the first of them is used, all at once: torch
alone takes a second, and `fganalysis --help` needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fganalysis.public_names import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"fganalysis has no {name}")
    if find_spec(f"fganalysis.{name}"):
        return import_module(f"fganalysis.{name}")
    public = import_module("fganalysis.public_names")
    globals().update({each: getattr(public, each) for each in (*public.__all__, "__all__")})
    if name not in globals():
        raise AttributeError(f"fganalysis has no {name}: its public names are in fganalysis.__all__")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
