"""What a verdict says, and what is refused before there is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.assertions.error_blocks import LEAST_GUESSES
from fganalysis.assertions.unbiased import assert_unbiased, check_unbiased
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates
from tests.unit.assertions.small_networks import RELU, SNAPSHOT


def test_a_verdict_is_one_paragraph_with_its_seed_and_rates() -> None:
    verdict = check_unbiased("upstream", RELU, seed=11)
    assert verdict.outcome == "biased"
    for part in ("upstream is biased", "Seed 11", "alpha 0.01", "tolerance 0.05", f"{verdict.n_guesses} guesses"):
        assert part in str(verdict)
    assert "\n" not in str(verdict)
    assert "unbiased to within the tolerance" in str(check_unbiased("backpropagation", RELU))
    # One less alpha, rounded, would be a confidence of 1.
    assert "(each with confidence 1 - 1e-06)" in str(check_unbiased("upstream", RELU, alpha=1e-6))


def test_the_verdict_depends_on_the_seed_alone() -> None:
    first = check_unbiased("activity", SNAPSHOT, tolerance=0.2, seed=3)
    assert check_unbiased("activity", SNAPSHOT, tolerance=0.2, seed=3, workers=3) == first
    assert check_unbiased("activity", SNAPSHOT, tolerance=0.2, seed=4) != first


class WithOffsets(torch.nn.Module):
    """Ten parameters of no tap: the module that owns them calls others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.offsets = torch.nn.ParameterList([torch.zeros(4) for _ in range(10)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for offset in self.offsets:
            hidden = hidden + offset
        return self.last(torch.tanh(hidden))


def test_a_verdict_names_the_parameters_that_it_says_nothing_of() -> None:
    network = WithOffsets().double()
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.mse_loss, inputs, inputs[:, :2])
    verdict = check_unbiased("backpropagation", snapshot)
    assert verdict.not_looked_at == tuple(f"offsets.{index}" for index in range(10))
    assert "Not looked at, as there is no guess for them: 'offsets.0', 'offsets.1', 'offsets.2'" in str(verdict)
    assert str(verdict).endswith("'offsets.7' and 2 more.")
    assert check_unbiased("weight", snapshot, tolerance=0.5).not_looked_at == ()
    everything = check_unbiased("backpropagation", SNAPSHOT)
    assert everything.not_looked_at == () and "Not looked at" not in str(everything)


def test_one_space_may_be_asked_for() -> None:
    verdict = check_unbiased("upstream", RELU, space="weight")
    assert [finding.space for finding in verdict.findings] == ["weight"]
    assert [finding.space for finding in check_unbiased("weight", RELU, tolerance=0.5).findings] == ["weight"]


def test_assert_unbiased_passes_and_fails_with_the_verdict() -> None:
    assert assert_unbiased("activity", SNAPSHOT, tolerance=0.2).outcome == "unbiased"
    with pytest.raises(AssertionError, match=r"upstream is biased .* Seed 7, alpha"):
        assert_unbiased("upstream", RELU, seed=7)
    with pytest.raises(AssertionError, match="activity is undecided"):
        assert_unbiased("activity", SNAPSHOT, max_guesses=LEAST_GUESSES)
    assert_unbiased("activity", SNAPSHOT, max_guesses=LEAST_GUESSES, may_be_undecided=True)


def broken(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
    return ActivationEstimates(
        tuple(torch.full((n_guesses, *g.shape), torch.nan, dtype=g.dtype) for g in snapshot.gradients)
    )


def test_wrong_arguments_and_guesses_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number above 0 and below 1, got 1"):
        check_unbiased("activity", SNAPSHOT, alpha=1)
    for tolerance in (0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"tolerance must be a finite number above 0, got {tolerance}"):
            check_unbiased("activity", SNAPSHOT, tolerance=tolerance)
    with pytest.raises(ValueError, match=r"tolerance must be above rounding errors, 1\.4e-14 here, got 1e-18"):
        check_unbiased("backpropagation", SNAPSHOT, tolerance=1e-18)
    for max_guesses in (2047, 1e4, np.nan):
        with pytest.raises(ValueError, match=f"max_guesses must be a whole number of at least 2048, got {max_guesses}"):
            check_unbiased("activity", SNAPSHOT, max_guesses=max_guesses)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no guess in 'activation' space, only in: weight"):
        check_unbiased("weight", SNAPSHOT, space="activation")
    with pytest.raises(ValueError, match=r"a guess that is NaN or infinite \(seed 5\)"):
        check_unbiased(broken, SNAPSHOT, seed=5)
    flat = replace(SNAPSHOT, exact_gradients=tuple(0 * gradient for gradient in SNAPSHOT.gradients))
    with pytest.raises(ValueError, match="the gradient is zero, so a relative bias has no meaning"):
        check_unbiased("activity", flat)
