"""Every estimator gets the right verdict, mutants are called biased, and false alarms stay below alpha."""

from __future__ import annotations

import copy
import dataclasses
import re
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.assertions.error_blocks import BLOCKS, LEAST_GUESSES, block_sizes
from fganalysis.assertions.unbiased import Outcome, assert_unbiased, check_unbiased
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, Estimator, label
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from fganalysis.estimators.noise import Rademacher, Sphere
from studies.mutants.broken_activity import BrokenActivity
from studies.mutants.estimators import MUTANTS
from studies.mutants.mistakes import one_coordinate_off, scaled, spread
from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot((3, 4, 4, 3), n_examples=4, activation=torch.nn.Softplus)
RELU = tiny_snapshot((4, 6, 6, 3), n_examples=4, activation=torch.nn.ReLU, seed=1)

# What each estimator of the table is with its default settings, but for `SETTINGS`; a new one needs a line here.
VERDICTS: dict[str, Outcome] = {
    "backpropagation": "unbiased",
    "weight": "unbiased",
    "activity": "unbiased",
    "upstream": "biased",
    "orthogonal": "biased",
    "newton_schulz": "biased",
    "preconditioned": "unbiased",
    "activation_mixing": "biased",
    "multi_tangent": "unbiased",
    "finite_difference": "unbiased",
    "minibatch": "unbiased",
    "feedback_alignment": "biased",
    "direct_feedback": "biased",
    "forward_direct_feedback": "biased",
    "local_loss": "biased",
}
SETTINGS: dict[str, Estimator] = {
    "orthogonal": fga.estimators.OrthogonalUpstream(k=2),
    "newton_schulz": fga.estimators.NewtonSchulzUpstream(k=2),
}
SEPARATE = fga.estimators.ActivityPerturbation(layers="separate")
VARIANTS: list[tuple[Estimator, Snapshot, Outcome]] = [
    (fga.estimators.WeightPerturbation(shared=False), RELU, "unbiased"),
    (fga.estimators.WeightPerturbation(noise=Sphere(), layers="separate"), RELU, "unbiased"),
    (fga.estimators.ActivityPerturbation(active_only=True), RELU, "unbiased"),
    (fga.estimators.ActivityPerturbation(noise=Rademacher(), shared=True), RELU, "unbiased"),
    (fga.estimators.ActivityPerturbation(shared=True, slope="batch"), RELU, "biased"),
    (fga.estimators.ActivityPerturbation(layers="separate", slope="batch"), RELU, "unbiased"),
    (fga.estimators.Upstream(normalise=True), RELU, "biased"),
    (fga.estimators.OrthogonalUpstream(k="rank"), RELU, "unbiased"),
    (fga.estimators.OrthogonalUpstream(k=2, which="bottom"), RELU, "biased"),
    # The last hidden layer's range has 3 of its 6 dimensions: the gradient lies in them.
    (fga.estimators.PreconditionedUpstream(layers="separate"), RELU, "unbiased"),
    (fga.estimators.ActivationMixing(layers="separate"), RELU, "biased"),
    (fga.estimators.MultiTangent(k=3), RELU, "unbiased"),
    (fga.estimators.MultiTangent(k=3, combine="orthogonal"), RELU, "biased"),
    (fga.estimators.FiniteDifference(epsilon=0.5), SNAPSHOT, "biased"),
    (fga.estimators.FiniteDifference(epsilon=0.5, central=False), SNAPSHOT, "biased"),
    (fga.estimators.Minibatch(size=3), RELU, "unbiased"),
    (fga.estimators.ForwardDirectFeedback(rate=0.1, steps=20), RELU, "biased"),
    (fga.estimators.ForwardDirectFeedbackAdam(rate=0.1, steps=20), RELU, "biased"),
    (fga.estimators.LocalLoss(target="local"), RELU, "biased"),
    (fga.estimators.LocalLoss(mode="redrawn"), RELU, "biased"),
    (fga.estimators.Averaged(SEPARATE, n_averaged=16), RELU, "unbiased"),
    (fga.estimators.Averaged(fga.estimators.Upstream(), n_averaged=4), RELU, "biased"),
    (fga.estimators.Subsampled(fga.estimators.Averaged(SEPARATE, n_averaged=16), size=2), RELU, "unbiased"),
    (fga.estimators.Subsampled(fga.estimators.Upstream(), size=2), RELU, "biased"),
]


def test_there_is_a_verdict_for_every_estimator_of_the_table() -> None:
    assert VERDICTS.keys() == ESTIMATORS.keys(), "say in VERDICTS whether the new estimator is biased"
    classes = {type(estimator) for estimator, _, _ in VARIANTS} | set(ESTIMATORS.values())
    public = [getattr(fga.estimators, name) for name in fga.estimators.__all__]
    assert all(one in classes for one in public if dataclasses.is_dataclass(one))


@pytest.mark.parametrize("key", ESTIMATORS)
def test_every_estimator_of_the_table_gets_its_verdict(key: str) -> None:
    assert check_unbiased(SETTINGS.get(key, key), RELU, tolerance=0.15).outcome == VERDICTS[key]


@pytest.mark.parametrize(("estimator", "snapshot", "outcome"), VARIANTS, ids=[label(row[0]) for row in VARIANTS])
def test_settings_that_decide_get_their_verdict(estimator: Estimator, snapshot: Snapshot, outcome: Outcome) -> None:
    assert check_unbiased(estimator, snapshot, tolerance=0.15).outcome == outcome


# How small a bias must be found, and the direction that the verdict names.
PLACES: dict[str, tuple[float, str]] = {
    "scaled by 1.01": (0.005, "along the gradient"),
    "scaled by .9": (0.05, "along the gradient"),
    "sign": (0.2, ""),
    "one coordinate off": (0.05, "in layer '4', example 3, unit 2"),
    "spread": (0.1, "coordinates"),  # Spread over all, or the few with the largest errors: both show it as early.
    "last example dropped": (0.1, "along the gradient of example 3"),
    "mask off by one": (0.1, ""),
    "layers swapped": (0.1, ""),
    "only downhill": (0.1, "along the gradient"),
    "slope clipped": (0.1, ""),
    "normalised": (0.1, ""),
    "mean over examples": (0.1, ""),
}


@pytest.mark.parametrize("name", PLACES)
def test_mutants_are_called_biased_and_the_place_is_named(name: str) -> None:
    """All mutants and all checks are in tests/studies/test_mutants.py; here is more than a handful of numbers."""
    tolerance, place = PLACES[name]
    verdict = check_unbiased(MUTANTS[name].broken, RELU, tolerance=tolerance, max_guesses=2**21)
    assert verdict.outcome == "biased"
    assert place in verdict.findings[0].direction
    lower, upper = verdict.findings[0].interval
    assert 0 < lower < verdict.findings[0].relative_bias * 1.2 and lower < upper


def test_the_reported_bias_and_its_interval_hold_the_truth() -> None:
    verdict = check_unbiased(BrokenActivity("spread", on_guesses=spread(0.3), layers="joint"), RELU, tolerance=0.1)
    found = {finding.space: finding for finding in verdict.findings}["activation"]
    assert found.interval[0] < 0.3 < found.interval[1]
    assert found.relative_bias == pytest.approx(0.3, abs=0.12)
    shrunk = check_unbiased(BrokenActivity("scaled", on_guesses=scaled(0.8), layers="joint"), RELU, tolerance=0.1)
    for finding in shrunk.findings:
        assert finding.shrinkage_interval[0] < 0.8 < finding.shrinkage_interval[1] < 1.0
    one = BrokenActivity("one", on_guesses=one_coordinate_off(0.3), layers="joint")
    first = check_unbiased(one, RELU, tolerance=0.1, space="activation").findings[0]
    assert (first.layer, first.unit) == ("4", 2)


def false_alarms(estimator: Estimator, snapshot: Snapshot, n_runs: int, alpha: float, max_guesses: int) -> float:
    """The share of an unbiased estimator's runs that are called biased, none of them stopped as unbiased."""
    outcomes = [
        check_unbiased(estimator, snapshot, alpha, tolerance=1e-9, max_guesses=max_guesses, seed=seed).outcome
        for seed in range(n_runs)
    ]
    return float(np.mean([outcome == "biased" for outcome in outcomes]))


@dataclass(frozen=True)
class RareEvents:
    """The gradient over p with probability p, else nothing: unbiased, with heavy tails (kurtosis about 1/p)."""

    probability: float = 0.03

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        gradients = snapshot.weight_gradients
        hits = torch.rand(n_guesses, generator=generator, dtype=gradients[0].dtype) < self.probability
        coefficients = (hits.to(gradients[0].dtype) / self.probability).unsqueeze(1).expand(-1, len(gradients))
        return WeightEstimates(coefficients, tuple(g.expand(n_guesses, *g.shape) for g in gradients))


@pytest.mark.parametrize("estimator", [fga.estimators.ActivityPerturbation(), RareEvents()], ids=label)
def test_false_alarms_stay_below_alpha_whenever_the_run_stops(estimator: Estimator) -> None:
    """60 runs at alpha .1 would show a rate above .22. Over 1000 runs at .01 there were at most 1 (5 for p = .01)."""
    assert false_alarms(estimator, tiny_snapshot((2, 2, 2)), 60, alpha=0.1, max_guesses=2**13) <= 0.1 + 3 * 0.039


def test_the_guesses_that_a_scale_error_takes_are_those_of_the_docstring() -> None:
    """30 v/r² with v = 2 for weight perturbation with Gaussian noise, to a factor of two."""
    inner = fga.estimators.WeightPerturbation()

    def ten_percent_more(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        estimates = inner(snapshot, n_guesses, generator)
        return replace(estimates, coefficients=1.1 * estimates.coefficients)

    runs = [check_unbiased(ten_percent_more, SNAPSHOT, tolerance=1e-3, seed=seed) for seed in range(9)]
    assert {run.outcome for run in runs} == {"biased"}
    assert 0.5 < np.median([run.n_guesses for run in runs]) / (30 * 2 / 0.1**2) < 2


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


def test_an_undecided_run_tells_how_many_guesses_it_would_take() -> None:
    short = check_unbiased("activity", SNAPSHOT, tolerance=0.1, max_guesses=LEAST_GUESSES)
    assert short.outcome == "undecided"
    assert f"about {short.guesses_needed:.2g} guesses" in str(short)
    long = check_unbiased("activity", SNAPSHOT, tolerance=0.1)
    assert long.outcome == "unbiased"
    assert 0.3 < short.guesses_needed / long.n_guesses < 3


def test_the_guesses_that_an_unbiased_estimator_takes_are_told_at_every_seed() -> None:
    """Noise taken for a bias would tell a hundredth of them in half of the runs; a longer run tells the same number."""
    snapshot = tiny_snapshot((3, 4, 4, 3), n_examples=4)
    short = [check_unbiased("activity", snapshot, max_guesses=4096, seed=seed) for seed in range(12)]
    long = check_unbiased("activity", snapshot, max_guesses=2**15)
    assert {run.outcome for run in [*short, long]} == {"undecided"}
    for run in short:
        assert 0.5 < run.guesses_needed / long.guesses_needed < 2


def test_the_guesses_that_a_biased_estimator_takes_are_told_once_half_the_evidence_is_there() -> None:
    """To a factor of three; before, what is told may be the number for "unbiased", and the text allows for it."""
    inner = fga.estimators.WeightPerturbation()

    def ten_percent_more(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        estimates = inner(snapshot, n_guesses, generator)
        return replace(estimates, coefficients=1.1 * estimates.coefficients)

    runs = [
        check_unbiased(ten_percent_more, SNAPSHOT, tolerance=0.01, max_guesses=4096, seed=seed) for seed in range(40)
    ]
    whole = [check_unbiased(ten_percent_more, SNAPSHOT, tolerance=0.01, seed=seed).n_guesses for seed in range(5)]
    undecided = [run for run in runs if run.outcome == "undecided"]
    seen = [run for run in undecided if run.findings[0].log_evidence >= np.log(100) / 2]
    assert 5 <= len(seen) < len(undecided)
    for run in seen:
        assert 1 / 3 < run.guesses_needed / np.median(whole) < 3
    assert all("guesses, or fewer if a bias shows before" in str(run) for run in undecided)


def test_a_verdict_names_the_parameters_that_it_says_nothing_of() -> None:
    layers = [torch.nn.Linear(3, 4), *(torch.nn.LayerNorm(4) for _ in range(5)), torch.nn.Tanh(), torch.nn.Linear(4, 2)]
    network = torch.nn.Sequential(*layers).double()
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.mse_loss, inputs, inputs[:, :2])
    verdict = check_unbiased("backpropagation", snapshot)
    assert verdict.not_looked_at == tuple(f"{layer}.{part}" for layer in range(1, 6) for part in ("weight", "bias"))
    assert "Not looked at, as they are in no Linear module: '1.weight', '1.bias', '2.weight'" in str(verdict)
    assert str(verdict).endswith("'4.bias' and 2 more.")
    everything = check_unbiased("backpropagation", SNAPSHOT)
    assert everything.not_looked_at == () and "Not looked at" not in str(everything)


def test_one_space_may_be_asked_for() -> None:
    verdict = check_unbiased("upstream", RELU, space="weight")
    assert [finding.space for finding in verdict.findings] == ["weight"]
    assert [finding.space for finding in check_unbiased("weight", RELU, tolerance=0.5).findings] == ["weight"]


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
