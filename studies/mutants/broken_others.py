"""Mistakes of the estimators that do not perturb activities alone: each a class of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators import MultiTangent, WeightPerturbation
from fganalysis.estimators.directional import Factor, Slope, guess_along, identity
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise


@dataclass(frozen=True)
class Reseeded:
    """``inner``, an instance, with a generator of its own, made anew at each call."""

    inner: Any
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        own = torch.Generator(generator.device).manual_seed(0)
        return replace(self.inner, noise=self.noise)(snapshot, n_guesses, own)


@dataclass(frozen=True)
class TransposedUpstream:
    """Upstream with J in the place of Jᵀ, which goes unnoticed where the next layer has as many units."""

    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "separate"

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        factors = [Factor(jacobian.weight.shape[1], jacobian.product) for jacobian in snapshot.upstream]
        return guess_along(self, snapshot, [*factors, identity(snapshot.taps[-1].units)], n_guesses, generator)


@dataclass(frozen=True)
class WeightDecayLeftIn:
    """Weight perturbation along which the loss with its weight decay was differentiated."""

    decay: float
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        estimates = WeightPerturbation(noise=self.noise)(snapshot, n_guesses, generator)
        more = [
            torch.einsum("gui,ui->g", d, t.weight) for d, t in zip(estimates.directions, snapshot.taps, strict=True)
        ]
        total = estimates.coefficients + self.decay * torch.stack(more).sum(0)[:, None]
        return replace(estimates, coefficients=total)


@dataclass(frozen=True)
class DividedByOneLess:
    """The sum of k guesses of weight perturbation over k − 1."""

    k: int
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        mean = MultiTangent(self.k, noise=self.noise)(snapshot, n_guesses, generator)
        return replace(mean, coefficients=mean.coefficients * self.k / (self.k - 1))


@dataclass(frozen=True)
class AllButTheLast:
    """Rows of a minibatch, as of ``randint(0, n_examples - 1)`` with an end that is not included."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n_guesses, n_examples - 1, generator=generator, device=generator.device).argsort(1)[:, :size]
