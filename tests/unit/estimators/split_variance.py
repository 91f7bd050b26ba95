"""Both parts of the variance of a guess on some rows, enumerated and predicted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    Estimator,
    Upstream,
)
from fganalysis.estimators.around.subsampled import restricted
from fganalysis.testing import Enumeration, exact_moments
from theory import upstream
from theory.factors import Diagonal, Factor
from theory.linear_guess import Moments, Slope, moments

SIZE = 2


@dataclass(frozen=True, eq=False)
class Split:
    """E and the two parts of the variance of a guess in one space, layer by layer: mean (number,) a layer."""

    means: list[Tensor]
    within: list[float]
    between: list[float]


def enumerate_split(estimator: Estimator, snapshot: Snapshot, law: Callable[[], Enumeration], space: int) -> Split:
    """Conditional moments on every subset of two rows, put together by the law of total variance.

    Activation guesses (space 0) are written to their rows; weight guesses (space 1) are those of the subset's own rows.
    """
    subsets = list(itertools.combinations(range(snapshot.n_examples), SIZE))
    conditional_means, within = [], []
    for subset in subsets:
        rows = torch.tensor(subset)
        part = restricted(snapshot, rows)
        exact = exact_moments(estimator, part, law)
        mean = exact.weight_mean if space else exact.activation_mean
        covariance = exact.weight_covariance if space else exact.activation_covariance
        assert mean is not None and covariance is not None
        tensors = part.weight_gradients if space else part.gradients
        sizes = [tensor.numel() for tensor in tensors]
        within.append([float(p.sum()) for p in covariance.diagonal().split(sizes)])
        means = []
        for one, gradient, whole in zip(mean.split(sizes), tensors, snapshot.gradients, strict=True):
            if space:
                means.append(one)
            else:
                means.append(torch.zeros_like(whole).index_copy(0, rows, one.view_as(gradient)).flatten())
        conditional_means.append(means)
    stacked = [torch.stack(of_layer) for of_layer in zip(*conditional_means, strict=True)]
    return Split(
        [means.mean(0) for means in stacked],
        list(np.mean(within, axis=0)),
        [float(means.var(0, correction=0).sum()) for means in stacked],
    )


def predicted(snapshot: Snapshot, estimator: Any, fourth: float, slope: Slope | None = None) -> list[Moments]:
    """Theory of an activity or upstream guess on the whole batch."""
    factors: list[Factor] = [Diagonal(np.ones(tuple(tap.outputs.shape))) for tap in snapshot.taps]
    if isinstance(estimator, Upstream):
        factors[:-1] = [upstream.upstream(j.weight.numpy(), j.derivative.numpy()) for j in snapshot.upstream]
    return moments(
        [gradient.numpy() for gradient in snapshot.gradients],
        factors,
        [fourth] * len(factors),
        [1.0] * len(factors),
        shared=estimator.shared,
        slope=slope or estimator.slope,
        layers=estimator.layers,
    )
