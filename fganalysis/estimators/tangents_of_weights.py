"""Guesses that see the network only through its slopes along random directions of all weights.

    t_i = slope along V_i, V_i ~ law       mean:        Ĝ = (1/k) Σ_i t_i V_i
                                           orthogonal:  Ĝ = Vᵀ(VVᵀ)⁻¹ t

An estimator of this kind declares so in its method ``tangents``, beside its formula. From the declaration alone its
guesses can be drawn in other ways than by a call: by their law (docs/mathematics.md#weight-guesses-by-their-law), or
parameter by parameter.

A subclass inherits the declaration as long as it changes settings only. Where it overrides a method that the declaring
class has, such as ``__call__``, its guess may be another, and nothing is declared until it has a ``tangents`` too.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fganalysis.capturing.tap import Layers
from fganalysis.estimators.noise import Noise

Combine = Literal["mean", "orthogonal"]
SlopeFrom = Literal["derivative", "central", "one-sided"]
DECLARATION = "tangents"


@dataclass(frozen=True)
class Tangents:
    """What a guess is made of.

    Attributes:
        noise: the law of each layer's part of a direction, one noise vector a layer. layers: whether all layers share a
            slope, or each has its own. k: directions of a guess. combine: how they become a guess. slope: a derivative,
            or a difference of losses whose limit it is. n_averaged: independent guesses, of k directions each, whose
            mean is taken.
    """

    noise: Noise
    layers: Layers
    k: int = 1
    combine: Combine = "mean"
    slope: SlopeFrom = "derivative"
    n_averaged: int = 1

    def check_dimension(self, sizes: Sequence[int]) -> None:
        """Raises ValueError for a projection on more directions than there are weights; sizes: of each layer."""
        dimension = sum(sizes) if self.layers == "joint" else min(sizes)
        if self.combine == "orthogonal" and self.k > dimension:
            raise ValueError(f"k must be at most the dimension, {dimension} weights, got {self.k}")


def tangents_of(estimator: Any) -> Tangents | None:
    """The declaration of an estimator, or None where it has none that holds for it."""
    classes = type(estimator).__mro__
    declaring = next((kind for kind in classes if DECLARATION in vars(kind)), None)
    if declaring is None:
        return None
    of_declaring = {name for kind in declaring.__mro__ if kind is not object for name in _behaviour(kind)}
    below = classes[: classes.index(declaring)]
    if any(of_declaring.intersection(vars(kind)) for kind in below):
        return None
    declare: Callable[[], Tangents | None] = getattr(estimator, DECLARATION)
    return declare()


def _behaviour(kind: type) -> set[str]:
    """Names of what a class computes: its ``__call__``, methods and properties, and not its fields or ``__init__``."""
    computed = types.FunctionType | property | classmethod | staticmethod
    names = {name for name, value in vars(kind).items() if isinstance(value, computed)}
    return {name for name in names if name == "__call__" or not name.startswith("__")}
