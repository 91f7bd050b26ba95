"""The public checks, each as one question: does it catch this estimator? And what enumeration says of it exactly."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import label
from fganalysis.testing import Enumeration, ExactMoments, assert_moments_match, exact_moments, signs, three_points
from studies.mutants.estimators import Mutant

Array = NDArray[np.float64]
LAWS: dict[str, Callable[[], Enumeration]] = {"three points": three_points, "signs": signs}
CHECKS = ("check_unbiased", "assert_moments_match", "agreement", "exact_moments")
FAR = "|z|>4"  # A column of `fganalysis.agreement`; a right estimator has one in 16000 comparisons there.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Unbiasedness:
    """What `fganalysis.check_unbiased` found, and after how many guesses; NaN where it is not asked."""

    caught: float
    n_guesses: float


def check_unbiased(mutant: Mutant, snapshot: Snapshot, tolerance: float, max_guesses: int, seed: int) -> Unbiasedness:
    """Caught where the verdict is "biased"; not asked of an estimator that does not claim to be unbiased."""
    if not mutant.claims_unbiased:
        return Unbiasedness(np.nan, np.nan)
    verdict = fga.check_unbiased(mutant.broken, snapshot, tolerance=tolerance, max_guesses=max_guesses, seed=seed)
    return Unbiasedness(float(verdict.outcome == "biased"), float(verdict.n_guesses))


def moments_do_not_match(mutant: Mutant, predicted: xr.Dataset, snapshot: Snapshot, n_guesses: int, seed: int) -> bool:
    """Whether `assert_moments_match` fails against the closed forms of what the mutant claims to be."""
    try:
        assert_moments_match(mutant.broken, predicted, snapshot, n_guesses=n_guesses, seed=seed)
    except AssertionError:
        return True
    return False


def disagrees(mutant: Mutant, predicted: xr.Dataset, snapshot: Snapshot, n_guesses: int, seed: int) -> bool:
    """Whether `fganalysis.agreement` counts any comparison beyond four standard errors."""
    claimed = {"estimator": label(mutant.claim)}
    measured = fga.sample(snapshot, mutant.broken, n_guesses, seed).assign_coords(claimed)
    tree = xr.DataTree.from_dict({"measured": measured, "predicted": predicted})
    return bool((fga.agreement(tree)[FAR] > 0).any())


def enumerated(mutant: Mutant, snapshot: Snapshot, law: str) -> xr.Dataset | None:
    """Squared bias, shrinkage and variance of the mutant over (space, layer), exactly, beside those of its claim.

    None where `exact_moments` refuses, noise that cannot be injected or too many values of it, and where the guesses of
    a call depend on each other: an enumeration is one call.
    """
    if not mutant.guesses_independent:
        return None
    try:
        moments = exact_moments(mutant.broken, snapshot, LAWS[law])
    except ValueError as refused:
        if re.search("no `noise` field|above max_points", str(refused)) is None:
            raise
        return None
    claim: Any = mutant.claim
    if hasattr(claim, "noise"):
        claim = replace(claim, noise=LAWS[law]())
    found = _quantities(moments, snapshot)
    predicted = fga.predict(snapshot, claim)
    for name in list(found.data_vars):
        found[f"{name}_claimed"] = predicted[name]
    found["gradient_norm"] = predicted["gradient_norm"]
    return found


def differs(found: xr.Dataset) -> bool:
    """Whether what was enumerated is, anywhere, not what the claim's closed form says."""
    squares = found["gradient_norm"] ** 2
    scales = {"squared_bias": squares, "shrinkage": xr.ones_like(squares), "variance": squares}
    excess = [abs(found[name] - found[f"{name}_claimed"]) > ROUNDING * scale for name, scale in scales.items()]
    return any(bool(wrong.any()) for wrong in excess)


def _quantities(moments: ExactMoments, snapshot: Snapshot) -> xr.Dataset:
    spaces = [
        (moments.activation_mean, moments.activation_covariance, snapshot.gradients),
        (moments.weight_mean, moments.weight_covariance, snapshot.weight_gradients),
    ]
    table = np.stack([_per_layer(*space) for space in spaces])
    layers = [*snapshot.layers, fga.schema.ALL_LAYERS]
    names = ("squared_bias", "shrinkage", "variance")
    variables = {name: (("space", "layer"), table[:, :, index]) for index, name in enumerate(names)}
    return xr.Dataset(variables, coords={"space": list(fga.schema.SPACES), "layer": layers})


def _per_layer(mean: Tensor | None, covariance: Tensor | None, gradients: tuple[Tensor, ...]) -> Array:
    """Squared bias, shrinkage and variance, (layer, 3), all layers last; NaN without guesses."""
    sizes = [gradient.numel() for gradient in gradients]
    if mean is None or covariance is None:
        return np.full((len(sizes) + 1, 3), np.nan)
    parts = zip(mean.split(sizes), covariance.diagonal().split(sizes), gradients, strict=True)
    rows = torch.stack(
        [
            torch.stack([(m - g.flatten()).square().sum(), m @ g.flatten(), v.sum(), g.square().sum()])
            for m, v, g in parts
        ]
    )
    rows = torch.cat([rows, rows.sum(0, keepdim=True)])
    return torch.stack([rows[:, 0], rows[:, 1] / rows[:, 3], rows[:, 2]], dim=1).cpu().numpy()
