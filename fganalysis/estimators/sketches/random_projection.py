"""Projection of the gradient on random directions of a layer's inputs, without the factor that would make it unbiased.

    Ĝ = G P Pᵀ,   P (input, k) orthonormal and uniformly random, drawn anew for each guess and layer

Random: P. Mean (k/d) G in d inputs, as E P Pᵀ = (k/d) I, and variance (k/d)(1 − k/d)‖G‖², as ‖G P Pᵀ‖² = ⟨G P Pᵀ, G⟩.
The control of `GradientProjection`: what a subspace of that size keeps that knows nothing of the gradient. Unbiased
random projections are `InputSketch`. Source: docs/mathematics.md#projections-of-the-gradient. Biases and layers that
are no matrix stay exact (`fganalysis.estimators.sketches.layers`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fganalysis.arguments import check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.factored import FactoredEstimates, Product, WrittenOut, summed
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.sketches.layers import SketchedLayer, sketched


@dataclass(frozen=True)
class RandomProjection:
    """Ĝ = G P Pᵀ with ``k`` random orthonormal directions; a layer of fewer inputs keeps all of its gradient.

    Raises ValueError for a k that is no whole number of at least 1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        check_whole("k", self.k)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> FactoredEstimates:
        def guess(layer: SketchedLayer) -> Product | WrittenOut:
            gradient = layer.of_weights
            shape = (n_guesses, layer.n_inputs, min(int(self.k), layer.n_inputs))
            normal = torch.randn(shape, generator=generator, dtype=gradient.dtype, device=gradient.device)
            directions = torch.linalg.qr(normal).Q.mT
            return summed([Product(directions @ gradient.T, directions)])

        return sketched(snapshot, n_guesses, guess, lambda layer: int(self.k) * layer.n_inputs)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return Passes(forward=1, backward=1, beside=("random projections",))
