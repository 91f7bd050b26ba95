"""Networks to measure and predict on, and estimators that claim to be another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.estimators.noise import GAUSSIAN, Noise

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scaled:
    """A negative control: every guess of another estimator 1 % too long."""

    of: Any
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        one = replace(self.of, noise=self.noise) if hasattr(self.of, "noise") else self.of
        estimates = one(snapshot, n_guesses, generator)
        assert isinstance(estimates, ActivationEstimates)
        return ActivationEstimates(tuple(1.01 * guess for guess in estimates.guesses))


@dataclass(frozen=True)
class Claims:
    """A negative control: guesses like ``being``, asks for the prediction of ``claimed``."""

    being: Estimator
    claimed: Estimator

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        return self.being(snapshot, n_guesses, generator)


def classification(sizes: tuple[int, ...], n_examples: int, seed: int = 0, step: int = 0) -> Snapshot:
    """A ReLU MLP with biases in single precision on Gaussian inputs."""
    network = fga.networks.mlp(list(sizes), bias=True, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(n_examples, sizes[0], generator=generator)
    targets = torch.randint(0, sizes[-1], (n_examples,), generator=generator)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets, step=step)


def scores(tree: xr.DataTree) -> Array:
    """All |z| of a diagnosis."""
    found = np.concatenate([array.values.ravel() for array in fga.z_scores(tree).values()])
    return np.abs(found[~np.isnan(found)])
