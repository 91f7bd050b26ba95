"""Sparse directions: exact moments with every mask in turn, the shares that are kept, and refused settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.estimators import SparsePerturbation, WeightPerturbation
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.testing import Enumeration, exact_moments, signs
from tests import laws
from tests.law_claims import ALWAYS, PREDICTED, Row
from tests.laws import tiny_snapshot

# Its masks come from the generator, so that no law of a noise can enumerate them: that is done here.
CLAIMS = [Row(SparsePerturbation(keep=0.5, keep_layers=0.8), (*ALWAYS, PREDICTED))]
NARROW = tiny_snapshot((1, 1, 2))
KEEP, KEEP_LAYERS = 0.3, 0.6


@dataclass(frozen=True)
class Masked:
    """Given masks, of the entries of one draw after another."""

    noise: Enumeration
    masks: Iterator[Tensor]

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        return self.noise.draw(shape, generator, like, vector_dims) * next(self.masks).view(shape[1:])

    def fourth(self, n: int) -> float:
        return 1.0

    def pair(self, n: int) -> float:
        return 1.0


@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_predictions_are_the_moments_of_all_masks_and_signs(layers: Any) -> None:
    sizes = [layer.weight.numel() for layer in NARROW.weights]
    n_weights, owner = sum(sizes), np.repeat(np.arange(2), sizes)
    mean, second = torch.zeros(n_weights, dtype=torch.float64), torch.zeros(n_weights, dtype=torch.float64)
    total = 0.0
    signs_of_weights = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n_weights)), dtype=torch.float64)
    gradient = laws.exact_gradient(NARROW)[1]
    for entries in itertools.product((0.0, 1.0), repeat=n_weights):
        for kept in itertools.product((0.0, 1.0), repeat=2):
            probability = np.prod([KEEP if m else 1 - KEEP for m in entries])
            probability *= np.prod([KEEP_LAYERS if b else 1 - KEEP_LAYERS for b in kept])
            mask = torch.tensor(np.array(entries) * np.array(kept)[owner]) / (KEEP * KEEP_LAYERS) ** 0.5
            directions = signs_of_weights * mask
            slopes = [(directions * gradient)[:, owner == layer].sum(1) for layer in range(2)]
            if layers == "joint":
                slopes = [slopes[0] + slopes[1]] * 2
            guesses = directions * torch.stack([slopes[layer] for layer in owner], 1)
            mean += probability * guesses.mean(0)
            second += probability * guesses.square().mean(0)
            total += float(probability)
    assert total == pytest.approx(1.0)
    torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-12)
    variance = [float(part.sum()) for part in (second - mean**2).split(sizes)]
    found = fga.predict(NARROW, SparsePerturbation(KEEP, KEEP_LAYERS, fga.estimators.noise.RADEMACHER, layers))
    found = found.sel(space="weight")
    np.testing.assert_allclose(found["variance"], [*variance, sum(variance)], rtol=1e-10)
    np.testing.assert_allclose(found["shrinkage"], 1.0, rtol=1e-12)
    whole = fga.predict(NARROW, WeightPerturbation(fga.estimators.noise.RADEMACHER, layers=layers))
    # The masks are seen.
    assert found["variance"][-1] > 1.05 * whole["variance"].sel(space="weight", layer="all")


def test_masks_have_their_shares() -> None:
    """Of the entries of kept layers, and of the layers: 5 standard errors, below .02."""
    snapshot = tiny_snapshot((20, 20, 10))
    directions = SparsePerturbation(KEEP, KEEP_LAYERS)(snapshot, 4000, torch.Generator().manual_seed(0)).directions
    for direction in directions:
        moved = direction.flatten(1) != 0
        kept = moved.any(1)
        assert abs(float(kept.double().mean()) - KEEP_LAYERS) < 5 * (KEEP_LAYERS * 0.4 / 4000) ** 0.5
        assert abs(float(moved[kept].double().mean()) - KEEP) < 0.02
        assert abs(float(direction.square().mean()) - 1) < 0.05
    apart = [(part.flatten(1) != 0).any(1) for part in directions]
    assert bool((apart[0] != apart[1]).any())


def test_whole_masks_are_weight_perturbation() -> None:
    dense = laws.guesses_of(WeightPerturbation(), NARROW)
    for one, other in zip(laws.guesses_of(SparsePerturbation(keep=1.0), NARROW), dense, strict=True):
        torch.testing.assert_close(one, other)


def test_a_mask_that_is_held_without_its_factor_is_biased() -> None:
    """The mean is then the part of the gradient that the mask leaves."""
    masks = [torch.tensor([1.0]), torch.tensor([1.0, 0.0])]
    law = Masked(signs(), itertools.cycle(masks))
    found = exact_moments(WeightPerturbation(signs()), NARROW, signs).weight_mean
    torch.testing.assert_close(found, laws.exact_gradient(NARROW)[1])
    guesses = WeightPerturbation(law)(NARROW, 8, torch.Generator()).dense(NARROW)[1]
    torch.testing.assert_close(guesses.mean(0), torch.cat(masks) * laws.exact_gradient(NARROW)[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, "keep must be a finite number above 0 and at most 1, got 0.0"),
        ({"keep_layers": 1.5}, "keep_layers must be a finite number above 0 and at most 1, got 1.5"),
        ({"layers": "all"}, "layers must be 'joint' or 'separate', got 'all'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsePerturbation(**settings)


def test_it_is_found_unbiased() -> None:
    law: Noise = GAUSSIAN
    verdict = fga.check_unbiased(SparsePerturbation(0.5, noise=law), NARROW, tolerance=0.2)
    assert verdict.outcome == "unbiased"
