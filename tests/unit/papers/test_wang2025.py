"""What is kept of the guesses for the metrics of Wang et al. 2025, and their intervals."""

from __future__ import annotations

import numpy as np
import torch

import fganalysis as fga
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from fganalysis.papers import wang2025
from fganalysis.papers.wang2025.intervals import bias_and_variance


def test_squares_are_summed_over_guesses_and_examples() -> None:
    network = fga.networks.mlp([4, 5, 3], bias=False, seed=0)
    generator = torch.Generator().manual_seed(0)
    snapshot = fga.capture(
        network, torch.nn.functional.cross_entropy, torch.randn(3, 4, generator=generator), torch.tensor([0, 1, 2])
    )
    guesses = tuple(torch.randn(6, *tap.outputs.shape, generator=generator) for tap in snapshot.taps)
    for squares, guess in zip(wang2025.keep(snapshot, ActivationEstimates(guesses)), guesses, strict=True):
        torch.testing.assert_close(squares, guess.square().sum((0, 1)).double())
    directions = tuple(torch.randn(6, *tap.weight.shape, generator=generator) for tap in snapshot.taps)
    assert wang2025.keep(snapshot, WeightEstimates(torch.ones(6, 2), directions)) == ()


def test_the_seed_papers_variance_says_where_its_interval_is_wide() -> None:
    """Where six groups more, as noisy as the noisiest, would raise it by more than the groups show."""
    generator = np.random.default_rng(0)
    second, error = 1 + 0.1 * generator.normal(size=(64, 5)), 1e-3 * generator.normal(size=(64, 5))
    noisy = second + np.where(np.arange(64) == 0, 0.25, 0.0)[:, None]
    for squares, wide in ((second, False), (noisy, True)):
        assert bool(bias_and_variance(squares, error, np.full(64, 16.0))["wang2025_variance"].wide) == wide
    # Where the squares hardly vary, what does is the noise of a mean error that may be zero, times itself.
    noise = 0.1 * np.random.default_rng(1).normal(size=(64, 5))
    for mean, wide in ((0.0, True), (1.0, False)):
        found = bias_and_variance(np.full((64, 5), 4.0), mean + noise, np.full(64, 16.0))
        assert bool(found["wang2025_variance"].wide) == wide
    few = bias_and_variance(second, error, np.full(64, 2.0))
    assert all(bool(np.all(estimate.wide)) for estimate in few.values())
