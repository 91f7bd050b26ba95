"""Scaling the loss by any factor scales every guess by it: over fifty decades, in single and double precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, label

NETWORK = fga.networks.mlp([6, 5, 4, 3], seed=0, activation=torch.nn.Tanh)
INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8) % 3
SETTINGS: dict[str, Any] = {"orthogonal": {"k": 2}, "newton_schulz": {"k": 2}}
E = fga.estimators
VARIANTS: list[Any] = [
    *[ESTIMATORS[key](**SETTINGS.get(key, {})) for key in ESTIMATORS],
    E.WeightPerturbation(shared=False),
    E.WeightPerturbation(layers="separate"),
    E.ActivityPerturbation(slope="batch", shared=True),
    E.ActivityPerturbation(layers="separate", active_only=True),
    E.MultiTangent(k=3, combine="orthogonal"),
    E.MultiTangent(k=3, layers="separate"),
    E.FiniteDifference(central=False),
    E.Averaged("weight", 3),
    E.Subsampled("activity", 3),
]


def at(factor: float, dtype: torch.dtype) -> Snapshot:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return factor * torch.nn.functional.cross_entropy(outputs, targets)

    return fga.capture(copy.deepcopy(NETWORK).to(dtype), loss, INPUTS.to(dtype), TARGETS)


PLAIN = {dtype: at(1.0, dtype) for dtype in (torch.float32, torch.float64)}


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("estimator", VARIANTS, ids=label)
@given(exponent=st.one_of(st.sampled_from([-83, 83]), st.integers(-83, 83)))
@settings(max_examples=4, deadline=None)
def test_a_guess_scales_with_the_loss(estimator: Any, dtype: torch.dtype, exponent: int) -> None:
    """By powers of two, so that little but the order of operations is rounded."""
    factor = 2.0**exponent
    own, other = (
        [tensor for tensor in estimator(snapshot, 3, torch.Generator().manual_seed(0)).total()]
        for snapshot in (PLAIN[dtype], at(factor, dtype))
    )
    for plain, scaled in zip(own, other, strict=True):
        error = (scaled.double() / factor - plain.double()).abs().max()
        # A difference of losses carries their rounding over ε.
        rounding = 1e-3 if isinstance(estimator, E.FiniteDifference) else 1e2 * torch.finfo(dtype).eps
        assert float(error) <= rounding * float(plain.abs().max())
