"""Rounding, scale, autocast, threads and memory change no verdict."""

from __future__ import annotations

import copy
import re
import subprocess
import sys

import pytest
import torch

import fganalysis as fga
from fganalysis.assertions.error_blocks import BLOCKS, LEAST_GUESSES, block_sizes
from fganalysis.assertions.unbiased import check_unbiased
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates
from tests.laws import tiny_snapshot
from tests.unit.assertions.small_networks import SNAPSHOT


def test_rounding_errors_in_single_precision_are_no_bias() -> None:
    network = fga.networks.mlp([5, 6, 3], seed=0)
    inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    snapshot = fga.capture(network, torch.nn.functional.mse_loss, inputs, targets)
    assert check_unbiased("backpropagation", snapshot, tolerance=1e-5).outcome == "unbiased"

    def slightly_more(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        return ActivationEstimates(tuple(1.0001 * g.expand(n_guesses, *g.shape) for g in snapshot.gradients))

    assert check_unbiased(slightly_more, snapshot, tolerance=1e-5).outcome == "biased"


def test_block_sizes_grow_and_use_what_there_is() -> None:
    sizes = list(block_sizes(10_000))
    assert sizes[:3] == [16, 24, 36]
    assert sum(sizes) == 10_000 // BLOCKS


def test_a_forward_mode_snapshot_is_checked_by_one_worker() -> None:
    """torch's levels of forward mode are shared by threads: with several, every run ended in an error."""
    forward = tiny_snapshot((30, 60, 40, 3), n_examples=4, activation=torch.nn.Softplus, autodiff="forward")
    settings = {"tolerance": 0.5, "max_guesses": LEAST_GUESSES}
    verdict = check_unbiased("activity", forward, workers=4, **settings)
    assert verdict == check_unbiased("activity", forward, workers=1, **settings)


SINGLE = fga.networks.mlp([6, 5, 4], seed=0)
INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(8) % 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["weight", "activity", "upstream", "finite_difference"])
def test_the_scale_of_the_loss_changes_no_verdict(estimator: str, dtype: torch.dtype) -> None:
    """Over fifty decades, of which single precision has squares of none but the middle ones."""
    verdicts = []
    for exponent in (0, -83, 83):

        def scaled(outputs: torch.Tensor, targets: torch.Tensor, factor: float = 2.0**exponent) -> torch.Tensor:
            return factor * torch.nn.functional.cross_entropy(outputs, targets)

        snapshot = fga.capture(copy.deepcopy(SINGLE).to(dtype), scaled, INPUTS.to(dtype), CLASSES)
        verdicts.append(check_unbiased(estimator, snapshot, tolerance=0.3, max_guesses=2**13))
    for verdict in verdicts[1:]:
        assert (verdict.outcome, verdict.n_guesses) == (verdicts[0].outcome, verdicts[0].n_guesses)
        for own, plain in zip(verdict.findings, verdicts[0].findings, strict=True):
            assert own.relative_bias == pytest.approx(plain.relative_bias, rel=1e-3, abs=1e-4)
            assert own.shrinkage == pytest.approx(plain.shrinkage, rel=1e-4)
            assert own.direction == plain.direction


@pytest.mark.parametrize("estimator", ["weight", "activity", "multi_tangent", "finite_difference", "minibatch"])
def test_autocast_changes_no_guess_and_no_verdict(estimator: str) -> None:
    snapshot = fga.capture(SINGLE, torch.nn.functional.cross_entropy, INPUTS, CLASSES)
    chosen = fga.estimators.resolve(estimator)
    verdict = check_unbiased(chosen, snapshot, tolerance=0.3, max_guesses=LEAST_GUESSES)
    estimates = chosen(snapshot, 3, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert check_unbiased(chosen, snapshot, tolerance=0.3, max_guesses=LEAST_GUESSES) == verdict
        under = chosen(snapshot, 3, torch.Generator().manual_seed(0))
    for guess, plain in zip(under.dense(snapshot), estimates.dense(snapshot), strict=True):
        assert guess is plain is None or torch.equal(guess, plain)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_check_keeps_to_its_memory() -> None:
    """In a process of its own, on a network whose arrays of a number a weight outweigh all else."""
    program = """
import resource, torch, fganalysis as fga
network = fga.networks.mlp([1000, 250, 10], bias=False, seed=0)
inputs = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(4))
fga.check_unbiased("backpropagation", fga.capture(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy,
                   inputs[:, :3], torch.arange(4) % 2), max_guesses=2048)
snapshot.weight_gradients
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fga.check_unbiased("backpropagation", snapshot, max_guesses=2048, space="weight", memory=MEMORY)
taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(sum(parameter.numel() for parameter in network.parameters()), 1024 * taken)
"""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program.replace("MEMORY", str(2**28))],
        capture_output=True,
        text=True,
        check=True,
    )
    weights, taken = map(int, found.stdout.split())
    assert taken < 750 * weights < 2**28


@pytest.mark.parametrize("estimator", ["activity", "weight"])
def test_a_memory_that_does_not_suffice_is_refused_with_one_that_does(estimator: str) -> None:
    with pytest.raises(
        ValueError, match=r"^memory must be at least \d+ MiB \(\d+ bytes\) to check this estimator"
    ) as caught:
        check_unbiased(estimator, SNAPSHOT, memory=1, max_guesses=LEAST_GUESSES)
    mebibytes, in_bytes = map(int, re.findall(r"(\d+) (?:MiB|bytes)\W", str(caught.value)))
    assert in_bytes == mebibytes * 2**20
    with pytest.raises(ValueError, match="memory must be at least"):
        check_unbiased(estimator, SNAPSHOT, memory=in_bytes - 2**20, max_guesses=LEAST_GUESSES)
    little = check_unbiased(estimator, SNAPSHOT, memory=in_bytes, max_guesses=LEAST_GUESSES, workers=4)
    assert little == check_unbiased(estimator, SNAPSHOT, max_guesses=LEAST_GUESSES)
