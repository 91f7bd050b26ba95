"""Weight perturbation, the forward gradient: one random direction in the space of all weights.

    Ĝ_l = t V_l,  t = Σ_l ⟨V_l, G_l⟩ (joint)  or  ⟨V_l, G_l⟩ (separate),  V ~ law, one for the whole batch

Random: V, the shape of all weights. Unbiased; variance (P + κ − 2)‖G‖². Source: Baydin et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fganalysis.estimates import WeightEstimates
from fganalysis.estimators.directional import check_switches
from fganalysis.noise import GAUSSIAN, Noise
from fganalysis.snapshot import Layers, Snapshot


@dataclass(frozen=True)
class WeightPerturbation:
    """Ĝ = (V·G) V; ``noise`` is the law of each tap's V, ``layers`` as in MATH.md §1."""

    noise: Noise = GAUSSIAN
    layers: Layers = "joint"

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        check_switches("batch", self.layers)
        directions = tuple(
            self.noise.draw((n_guesses, *tap.weight.shape), generator, tap.weight, vector_dims=2)
            for tap in snapshot.taps
        )
        slopes = snapshot.weight_slopes(directions, self.layers)
        return WeightEstimates(slopes.expand(-1, len(directions)), directions)
