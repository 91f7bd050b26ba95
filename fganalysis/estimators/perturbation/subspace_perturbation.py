"""Subspace perturbation: every matrix of weights is moved inside a random subspace that is held for some steps.

    V = U Z Wᵀ,  Z (r, r) ~ law,  U (row, r) and W (column, r) orthonormal and fixed        Ĝ_l = t V_l

Given U and W the mean is U Uᵀ G W Wᵀ: what of the gradient lies in the subspace, a share r²/(rows·columns) of its
squared norm on average. The variance is that of weight perturbation in r² dimensions. With ``rescale`` V is multiplied
by √(rows·columns)/r, so that the mean over random subspaces is G; given U and W it is still U Uᵀ G W Wᵀ, too long.

U and W are uniformly random and fixed by ``seed``, the parameter's name and the snapshot's step // ``window``: they
are no part of the noise, and what is measured or predicted on a snapshot is conditional on them. `fganalysis.train`
counts steps; `fganalysis.estimate_gradient` does not, so that there another subspace takes another ``seed``. A side of
a matrix that is no longer than r is kept whole. Vectors are moved along unstructured noise
(`fganalysis.estimators.perturbation.weight_directions`).

Random: Z. Biased given U and W. Source: Yu et al. 2024 (SubZero).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_flag, check_seed, check_whole
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
class Subspace:
    """U (row, mode) and W (column, mode), orthonormal, and what V = scale · U Z Wᵀ is multiplied with."""

    left: Tensor
    right: Tensor
    scale: float


@dataclass(frozen=True)
class SubspacePerturbation:
    """Ĝ = (V·G) V, V = U Z Wᵀ in a subspace of ``rank`` that is held for ``window`` steps; ``noise`` is the law of Z.

    ``layers`` is a switch of docs/notation.md#the-three-switches.

    Raises:
        ValueError: rank or window that is no whole number of at least 1, or another wrong field.
    """

    rank: int = 2
    window: int = 1000
    rescale: bool = False
    seed: int = 0
    noise: Noise = GAUSSIAN
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        check_whole("window", self.window)
        check_flag("rescale", self.rescale)
        check_seed("seed", self.seed)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> FactoredEstimates:
        return guess_along_factors(self, snapshot, n_guesses, generator)

    def directions(
        self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator
    ) -> tuple[Product | WrittenOut, ...]:
        """V of each layer, in factored form."""
        subspaces = self.subspaces(snapshot)
        directions = []
        for layer in snapshot.weights:
            parts: list[Product | Tensor] = []
            for parameter in parameters_of(layer):
                held = subspaces.get(parameter.name)
                if held is None:
                    parts.append(unstructured(self.noise, parameter, n_guesses, generator, layer.weight))
                    continue
                shape = (n_guesses, held.left.shape[1], held.right.shape[1])
                inside = drawn(self.noise, shape, generator, layer.weight, vector_dims=2)
                right = (held.scale * held.right.mT).expand(n_guesses, -1, -1)
                parts.append(Product((held.left @ inside).mT, right))
            directions.append(in_layer(layer, parts))
        return tuple(directions)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """V x from the factors of V is no product of the whole layer."""
        stated = passes_of_tangents(n_guesses, self.layers, snapshot, ("products with the factors of V",))
        return replace(stated, products=0)

    def subspaces(self, snapshot: Snapshot) -> Mapping[str, Subspace]:
        """The subspaces of the snapshot's window, by the name of every parameter that is a matrix."""
        window = snapshot.step // int(self.window)
        key = ("subspaces", int(self.rank), bool(self.rescale), int(self.seed), window)
        made: Mapping[str, Subspace] = snapshot.remember(
            key,
            lambda: {
                parameter.name: self._subspace(parameter, window, layer.weight)
                for layer in snapshot.weights
                for parameter in parameters_of(layer)
                if parameter.is_matrix
            },
        )
        return made

    def _subspace(self, parameter: Parameter, window: int, like: Tensor) -> Subspace:
        # On the CPU and in double precision, so that every device and data type has the same subspace.
        entropy = np.random.SeedSequence([int(self.seed), window, zlib.crc32(parameter.name.encode())])
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        left, right = (self._basis(length, generator).to(like) for length in (parameter.rows, parameter.columns))
        whole = math.sqrt(parameter.size / (left.shape[1] * right.shape[1]))
        return Subspace(left, right, whole if self.rescale else 1.0)

    def _basis(self, length: int, generator: torch.Generator) -> Tensor:
        """Orthonormal columns, uniformly random: (length, mode)."""
        normal = torch.randn(length, min(int(self.rank), length), generator=generator, dtype=torch.float64)
        factors = torch.linalg.qr(normal)
        # The signs of R are LAPACK's choice, without which Q would not be uniform.
        return factors.Q * factors.R.diagonal().sign()
