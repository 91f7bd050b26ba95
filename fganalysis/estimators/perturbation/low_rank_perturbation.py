"""Low-rank perturbation: every matrix of weights is moved along a random matrix of rank r.

    V = U Wᵀ/√r,  U (row, r) and W (column, r) ~ law        Ĝ_l = t V_l,  t = Σ_l ⟨V_l, G_l⟩

The entries of V are uncorrelated, so the guess is unbiased. What r costs is fourth moments alone: the variance of a
matrix of P weights by itself, (P + 1 + 2(rows + columns + 1)/r)‖G‖², is that of weight perturbation plus the last term.
So rank 1 takes rows + columns random numbers instead of P, and hardly more guesses. Without 1/√r the mean is r G.

Vectors (biases, scales of normalisation layers) are moved along unstructured noise, and a weight of more than two axes
is its first axis by all others (`fganalysis.estimators.perturbation.weight_directions`).

Random: U, W of each matrix and guess. Unbiased. Sources: Chen et al. 2024 (LOZO); Sarkar et al. 2025 (EGGROLL); the
variance is derived in theory/low_rank_perturbation.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fganalysis.arguments import check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.factored import FactoredEstimates, Product, WrittenOut
from fganalysis.estimators.noise import GAUSSIAN, Noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.perturbation.weight_directions import (
    Parameter,
    guess_along_factors,
    in_layer,
    parameters_of,
    unstructured,
)
from fganalysis.estimators.tangents_of_weights import passes_of_tangents


@dataclass(frozen=True)
class LowRankPerturbation:
    """Ĝ = (V·G) V, V of rank ``rank``; ``noise`` is the law of U and of W, each one noise vector.

    ``layers`` is a switch of docs/notation.md#the-three-switches. A rank above that of a matrix is allowed: V then
    comes nearer to unstructured noise.

    Raises:
        ValueError: a rank that is no whole number of at least 1, or another wrong field.
    """

    rank: int = 1
    noise: Noise = GAUSSIAN
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> FactoredEstimates:
        return guess_along_factors(self, snapshot, n_guesses, generator)

    def directions(
        self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator
    ) -> tuple[Product | WrittenOut, ...]:
        """V of each layer, in factored form."""
        return tuple(
            in_layer(
                layer,
                [self._direction(part, n_guesses, generator, layer.weight) for part in parameters_of(layer)],
            )
            for layer in snapshot.weights
        )

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """V x from the factors of V is no product of the whole layer."""
        stated = passes_of_tangents(n_guesses, self.layers, snapshot, ("products with the factors of V",))
        return replace(stated, products=0)

    def _direction(
        self, parameter: Parameter, n_guesses: int, generator: torch.Generator, like: Tensor
    ) -> Product | Tensor:
        if not parameter.is_matrix:
            return unstructured(self.noise, parameter, n_guesses, generator, like)
        rank = int(self.rank)
        left = drawn(self.noise, (n_guesses, parameter.rows, rank), generator, like, vector_dims=2)
        right = drawn(self.noise, (n_guesses, parameter.columns, rank), generator, like, vector_dims=2)
        return Product(left.mT, right.mT / math.sqrt(rank))
