"""A seed is printed with every failure, and with it the failure comes again, word for word."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.testing import assert_moments_match, assert_unbiased, strategies
from studies.mutants.estimators import MUTANTS
from studies.mutants.small_network import snapshot

SNAPSHOT = snapshot()
BROKEN = MUTANTS["last example doubled"]
PREDICTED = fga.predict(SNAPSHOT, BROKEN.claim)
SEED = 20250317


def moments_match(seed: int) -> str:
    return str(assert_moments_match(BROKEN.broken, PREDICTED, SNAPSHOT, n_guesses=512, seed=seed))


def unbiased(seed: int) -> str:
    return str(assert_unbiased(BROKEN.broken, SNAPSHOT, seed=seed))


def unbiased_in_one_space(seed: int) -> str:
    return str(assert_unbiased(BROKEN.broken, SNAPSHOT, seed=seed, space="weight"))


def still_undecided(seed: int) -> str:
    return str(assert_unbiased("activity", SNAPSHOT, tolerance=0.01, max_guesses=2048, seed=seed))


def message_of(check: Callable[[int], str], seed: int) -> str:
    with pytest.raises(AssertionError) as failure:
        check(seed)
    return str(failure.value)


def seed_in(message: str) -> int:
    (found,) = re.findall(r"\b[Ss]eed (\d+)\b", message)
    return int(found)


@pytest.mark.parametrize("check", [moments_match, unbiased, unbiased_in_one_space, still_undecided])
def test_a_failure_names_its_seed_and_comes_again_with_it(check: Callable[[int], str]) -> None:
    message = message_of(check, SEED)
    assert seed_in(message) == SEED
    assert message_of(check, seed_in(message)) == message
    assert message_of(check, SEED + 1).replace(str(SEED + 1), str(SEED)) != message


def test_a_verdict_comes_again_from_what_it_says() -> None:
    """Seed, alpha, tolerance and guesses are in the text; with them alone the same guesses are drawn."""
    verdict = fga.check_unbiased("activity", SNAPSHOT, alpha=0.02, tolerance=0.15, seed=SEED)
    text = str(verdict)
    alpha, tolerance = (float(re.findall(rf"{name} ([\d.]+\d)", text)[0]) for name in ("alpha", "tolerance"))
    (n_guesses,) = re.findall(r"(\d+) guesses: enough", text)
    again = fga.check_unbiased("activity", SNAPSHOT, alpha, tolerance, int(n_guesses), seed_in(text))
    assert again == verdict
    assert verdict.n_guesses == int(n_guesses) < 2**18


def test_a_match_names_its_seed_and_comes_again_with_it() -> None:
    def match(seed: int) -> str:
        predicted = fga.predict(SNAPSHOT, "weight")
        return str(assert_moments_match("weight", predicted, SNAPSHOT, n_guesses=512, seed=seed))

    assert seed_in(match(SEED)) == SEED
    assert match(SEED) == match(SEED) != match(SEED + 1)


def test_a_guess_that_is_not_finite_is_refused_with_the_seed() -> None:
    def sometimes_infinite(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        estimates = fga.estimators.ActivityPerturbation()(snapshot, n_guesses, generator)
        estimates.guesses[0][torch.rand(n_guesses, generator=generator) < 0.01] = torch.inf
        return estimates

    with pytest.raises(ValueError, match=rf"a guess that is NaN or infinite \(seed {SEED}\)"):
        fga.check_unbiased(sometimes_infinite, SNAPSHOT, seed=SEED)


def test_a_failing_property_comes_again_from_the_example_that_hypothesis_prints() -> None:
    """What hypothesis found: the network as an argument, the seed as an argument and in the message."""
    found: list[tuple[Snapshot, int]] = []

    def always_doubled(snapshot: Snapshot, seed: int) -> None:
        assert_unbiased(
            BROKEN.broken, snapshot, 1e-6, tolerance=0.5, max_guesses=2**12, seed=seed, may_be_undecided=True
        )

    # Shrinking would take a minute, and prints no other kind of message.
    @settings(max_examples=20, database=None, derandomize=True, phases=[Phase.generate])
    @given(snapshot=strategies.snapshots(), seed=strategies.seeds())
    def property_test(snapshot: Snapshot, seed: int) -> None:
        found.append((snapshot, seed))
        always_doubled(snapshot, seed)

    with pytest.raises(AssertionError) as failure:
        property_test()
    message, (network, seed) = str(failure.value), found[-1]
    assert f"Seed {seed}," in message
    assert any(f"seed={seed}," in note for note in failure.value.__notes__)
    with pytest.raises(AssertionError) as again:
        always_doubled(network, seed)
    assert str(again.value) == message
