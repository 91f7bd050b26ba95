"""Guided perturbation (guided evolution strategies): directions that lie partly in the span of surrogate gradients.

    V = √α e + √((1 − α) P/k) U e′,  e ~ law over all P weights, e′ ~ law over k directions        Ĝ = t V,  t = V·G

U (weight, k) is an orthonormal basis of the span of k guesses of ``guide``, an estimator that may be biased. The mean
is Σ G with Σ = α I + (1 − α)(P/k) U Uᵀ: what lies in the span is stretched, and the remainder shrunk by α. Only α = 1,
which is weight perturbation, is unbiased. In the original σ²/P stands before Σ, which a step size replaces.

The k guesses are drawn once a step, fixed by ``seed`` and the snapshot's step: they are no part of the noise, and what
is measured or predicted on a snapshot is conditional on U. U spans the weights of all layers, so there is one slope.

Random: e, e′. Biased: the mean is Σ G. Source: Maheswaranathan et al. 2019 (Guided evolutionary strategies).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_callable, check_number, check_seed, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.sampling_rows.minibatch import Minibatch
from fganalysis.estimators.tangents_of_weights import passes_of_tangents

ONE_EXAMPLE = Minibatch(size=1)


@dataclass(frozen=True)
class GuidedPerturbation:
    """Ĝ = (V·G) V, V partly in the span of ``k`` guesses of ``guide``, an instance of an estimator.

    alpha: the share of the direction's variance outside of the span, above 0 and at most 1. noise: the law of e, one
    noise vector a layer, and of e′. seed: of the guides.

    Raises:
        ValueError: alpha outside (0, 1], k that is no whole number of at least 1, a guide that is no instance; at a
            call, guides that are linearly dependent, as several guesses of an estimator without noise are.
    """

    alpha: float = 0.5
    k: int = 1
    guide: Any = ONE_EXAMPLE
    seed: int = 0
    noise: Noise = GAUSSIAN

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0, most=1)
        check_whole("k", self.k)
        check_callable("guide", self.guide, "an instance of an estimator", 3)
        check_seed("seed", self.seed)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        directions = self.draw(snapshot, n_guesses, generator)
        return WeightEstimates(snapshot.weight_slopes(directions).expand(-1, len(directions)), directions)

    def draw(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """V, (guess, unit, input) a layer."""
        basis = self.basis(snapshot)
        n_weights = sum(layer.weight.numel() for layer in snapshot.weights)
        inside = drawn(self.noise, (n_guesses, int(self.k)), generator, snapshot.like)
        inside = inside * math.sqrt((1 - self.alpha) * n_weights / int(self.k))
        directions = []
        for layer, part in zip(snapshot.weights, basis, strict=True):
            noise = drawn(self.noise, (n_guesses, *layer.weight.shape), generator, layer.weight, vector_dims=2)
            directions.append(noise * math.sqrt(self.alpha) + torch.tensordot(inside, part, dims=1))
        return tuple(directions)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """Without those of the guides, which one sample of guesses shares."""
        return passes_of_tangents(n_guesses, "joint", snapshot, ("guesses of the guide", "an orthonormal basis"))

    def basis(self, snapshot: Snapshot) -> tuple[Tensor, ...]:
        """U, (guide, unit, input) a layer; orthonormal over all layers together."""
        # The guide is in the key itself: were it only its number in memory, another one could get that number.
        made: tuple[Tensor, ...] = snapshot.remember(
            ("guides", _Same(self.guide), int(self.k), int(self.seed)), lambda: self._basis(snapshot)
        )
        return made

    def _basis(self, snapshot: Snapshot) -> tuple[Tensor, ...]:
        entropy = np.random.SeedSequence([int(self.seed), snapshot.step])
        seed = int(entropy.generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator(snapshot.device).manual_seed(seed)
        guides = [self.guide(snapshot, 1, generator).weight_gradients(snapshot) for _ in range(int(self.k))]
        flat = torch.stack([torch.cat([part.double().flatten() for part in guide]) for guide in guides])
        lengths = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        factors = torch.linalg.qr((flat / torch.where(lengths > 0, lengths, 1.0)).T)
        left_over = factors.R.diagonal().abs()
        if len(flat) > flat.shape[1] or bool((left_over < 1e3 * torch.finfo(snapshot.dtype).eps).any()):
            raise ValueError(
                f"the k={self.k} guides are linearly dependent: use a smaller k, another seed, or a guide whose "
                "guesses differ"
            )
        sizes = [layer.weight.numel() for layer in snapshot.weights]
        parts = factors.Q.T.to(snapshot.like).split(sizes, dim=1)
        return tuple(part.reshape(-1, *layer.weight.shape) for part, layer in zip(parts, snapshot.weights, strict=True))


class _Same:
    """An object that equals itself alone, whether or not it can be hashed."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held
