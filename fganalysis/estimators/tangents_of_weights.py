"""Guesses that see the network only through its slopes along random directions of all weights.

    t_i = slope along V_i, V_i ~ law       mean:        Ĝ = (1/k) Σ_i t_i V_i
                                           orthogonal:  Ĝ = Vᵀ(VVᵀ)⁻¹ t

An estimator of this kind declares so in its method ``tangents``, beside its formula. From the declaration alone its
guesses can be drawn in other ways than by a call: by their law (docs/mathematics.md#weight-guesses-by-their-law), or
parameter by parameter.

Which subclasses inherit it is said in `fganalysis.estimators.declarations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.declarations import declared
from fganalysis.estimators.noise import Noise
from fganalysis.estimators.passes import Passes

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
    declare = declared(estimator, DECLARATION)
    found: Tangents | None = None if declare is None else declare()
    return found


def passes_of_tangents(n_tangents: int, layers: Layers, snapshot: Snapshot, beside: tuple[str, ...] = ()) -> Passes:
    """A forward pass and the slopes along so many directions of all weights, each V x of every layer and a tangent."""
    passes = 1 if layers == "joint" else len(snapshot.weights)
    return Passes(1, n_tangents * passes, products=n_tangents, beside=beside)
