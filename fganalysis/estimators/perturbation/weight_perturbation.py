"""Weight perturbation, the forward gradient: one random direction in the space of all weights.

    Ĝ_l = t V_l,  t = Σ_l ⟨V_l, G_l⟩ (joint)  or  ⟨V_l, G_l⟩ (separate),  V ~ law, one for the whole batch

With ``shared=False``, Ĝ_l = Σ_b t_b V_l,b has a direction and a slope for every example. No single forward pass gives
this; Ren et al. 2023 compare it. Random: V, in the shape of all weights. Unbiased. Variance (P + κ − 2)‖G‖² for a
shared V. Sources: docs/mathematics.md#weight-perturbation; Baydin et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers, Tap
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.tangents_of_weights import Tangents, passes_of_tangents


@dataclass(frozen=True)
class WeightPerturbation:
    """Ĝ = (V·G) V; ``noise`` is the law of the entries of V.

    ``shared`` and ``layers`` are switches of docs/notation.md#the-three-switches.
    """

    noise: Noise = GAUSSIAN
    shared: bool = True
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_switches(self)

    def tangents(self) -> Tangents | None:
        """One direction of the whole batch; a direction for every example is none of the weights'."""
        return Tangents(self.noise, self.layers) if self.shared else None

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        if not self.shared:
            return self._per_example(snapshot, n_guesses, generator)
        directions = tuple(
            drawn(self.noise, (n_guesses, *layer.weight.shape), generator, layer.weight, vector_dims=2)
            for layer in snapshot.weights
        )
        slopes = snapshot.weight_slopes(directions, self.layers)
        return WeightEstimates(slopes.expand(-1, len(directions)), directions)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        stated = passes_of_tangents(n_guesses, self.layers, snapshot)
        # Σ_b t_b V_b has as many terms as a product with the weights.
        return stated if self.shared else replace(stated, products=2 * n_guesses)

    def _per_example(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        snapshot.check_examples_apart()
        if len(snapshot.taps) != len(snapshot.weights) or not all(_is_plain(tap) for tap in snapshot.taps):
            raise ValueError(
                "shared=False draws weights for every example, which takes a Linear module with a row an example at "
                "every layer: use shared=True"
            )
        shapes = [(n_guesses, snapshot.n_examples, *layer.weight.shape) for layer in snapshot.weights]
        directions = [
            drawn(self.noise, shape, generator, layer.weight, vector_dims=2)
            for shape, layer in zip(shapes, snapshot.weights, strict=True)
        ]
        # V changes the activations along V x, so the slope along V is the slope along V x.
        at_activations = [
            torch.einsum("nboi,bi->nbo", direction, tap.inputs)
            for direction, tap in zip(directions, snapshot.taps, strict=True)
        ]
        slopes = snapshot.slopes(at_activations, self.layers).expand(-1, len(directions), -1).unbind(1)
        guesses = tuple(torch.einsum("nboi,nb->noi", d, t) for d, t in zip(directions, slopes, strict=True))
        return WeightEstimates(torch.ones_like(slopes[0][:, :1]).expand(-1, len(guesses)), guesses)


def _is_plain(tap: Tap) -> bool:
    return isinstance(tap.weights, MatrixMap) and tap.owners is not None and tap.owners.is_plain
