"""Sparse perturbation: only a random part of the weights, or of the layers, is moved at a time.

    V_i = m_i b_l e_i/√(p q),  e ~ law,  m_i = 1 with probability p, b_l = 1 with probability q        Ĝ_l = t V_l

Every guess draws the masks anew, m for each weight and b for each layer. The entries of V stay uncorrelated with unit
variance, so the guess is unbiased; their fourth moments grow, to κ/(pq) and, for two weights of a layer, 1/q. The guess
is that of weight perturbation with this law: p costs (κ/p − κ)‖G_l‖², which is little beside P‖G‖². q is expensive:
with few layers, a step that moves one of them has 1/q times the variance of the layer's own part.

Random: e, m, b. Unbiased. Sources: Liu et al. 2024 (sparse MeZO) and Wang et al. 2024 (LeZO, layer-wise), whose masks
are chosen by the size of the weights or without the factor 1/√(pq), which makes their means a part of G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_number
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.perturbation.weight_perturbation import WeightPerturbation


@dataclass(frozen=True)
class Sparse:
    """The law of m b e/√(p q): a random part ``keep`` of the entries, ``keep_vectors`` of the noise vectors."""

    noise: Noise
    keep: float
    keep_vectors: float

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        noise = self.noise.draw(shape, generator, like, vector_dims)
        whole = (*shape[:-vector_dims], *(1,) * vector_dims)
        for size, share in ((shape, self.keep), (whole, self.keep_vectors)):
            if share < 1:
                kept = torch.rand(size, generator=generator, dtype=like.dtype, device=like.device) < share
                noise = noise * (kept / math.sqrt(share))
        return noise

    def fourth(self, n: int) -> float:
        return self.noise.fourth(n) / (self.keep * self.keep_vectors)

    def pair(self, n: int) -> float:
        return self.noise.pair(n) / self.keep_vectors


@dataclass(frozen=True)
class SparsePerturbation:
    """Ĝ = (V·G) V, V zero outside of a random part ``keep`` of the weights and ``keep_layers`` of the layers.

    ``noise`` is the law of the entries that are moved, ``layers`` a switch of docs/notation.md#the-three-switches. Each
    weight and each layer is kept independently of the others, so their number varies.

    Raises:
        ValueError: keep or keep_layers outside (0, 1], or another wrong field.
    """

    keep: float = 0.1
    keep_layers: float = 1.0
    noise: Noise = GAUSSIAN
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_number("keep", self.keep, above=0, most=1)
        check_number("keep_layers", self.keep_layers, above=0, most=1)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        return self.as_weight_perturbation()(snapshot, n_guesses, generator)

    def as_weight_perturbation(self) -> WeightPerturbation:
        """Weight perturbation with the law of V."""
        law = Sparse(self.noise, float(self.keep), float(self.keep_layers))
        return WeightPerturbation(law, layers=self.layers)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return self.as_weight_perturbation().passes(snapshot, n_guesses)
