"""The budget of a monitor, by a clock that only training steps, guesses and passes move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fganalysis as fga
from fganalysis.monitoring.budget import Budget
from fganalysis.statistics.intervals import LEAST
from tests.unit.monitoring.watched import batch, plain_network


class Clock:
    """Seconds that pass where they are added."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def run(at_most: float | None, each: float, fixed: float, n_steps: int = 400) -> tuple[Any, list[float]]:
    """Training steps of a second each; a measurement takes ``fixed`` seconds and ``each`` for a guess."""
    budget, measured, shares = Budget(at_most, clock := Clock()), [], []
    for step in range(n_steps):
        budget.arrive()
        n_guesses = budget.guesses(64) if step % 10 == 0 else 0
        if n_guesses:
            clock.seconds += fixed + each * n_guesses
            budget.paid(fixed + each * n_guesses, 0.0, each * n_guesses, n_guesses)
            measured.append(n_guesses)
        shares.append(budget.share)
        budget.leave()
        clock.seconds += 1.0
    return measured, shares


def test_without_a_budget_every_measurement_is_whole() -> None:
    measured, shares = run(None, 1.0, 0.0)
    assert measured == [64] * 40
    assert shares[-1] == pytest.approx(6.4, rel=0.05)


def test_a_budget_that_is_large_enough_changes_nothing_but_the_first() -> None:
    measured, shares = run(0.6, 0.05, 0.1)
    assert measured == [LEAST] + [64] * 39
    assert shares[-1] <= 0.6


def test_a_budget_is_kept_by_fewer_guesses_and_by_fewer_measurements() -> None:
    measured, shares = run(0.1, 0.03, 0.05)  # 64 guesses of 2 s: every 20 steps, 32 nearly every 10
    assert set(measured) <= set(range(LEAST, 65)) and len(measured) > 20
    assert max(shares[20:]) <= 0.1 + 1e-9
    rare, shares = run(0.02, 0.03, 0.05)
    assert 5 <= len(rare) < len(measured)
    assert max(shares[60:]) <= 0.02 + 1e-9


def test_a_measurement_that_takes_longer_than_thought_is_paid_before_the_next() -> None:
    clock = Clock()
    budget = Budget(0.1, clock)
    budget.paid(1.0, 0.0, 1.0, 32)
    budget.leave()
    clock.seconds = 20.0
    budget.arrive()
    assert budget.guesses(64) == 32
    budget.paid(6.0, 5.0, 0.5, 32)  # 5 s once, which the next will not take
    assert budget.guesses(64) == 0
    budget.leave()
    clock.seconds += 60.0
    budget.arrive()
    assert budget.guesses(64) == 32  # 8 s allowed, 7 s spent, 0.5 s fixed and 0.5 s for 32 guesses
    assert Budget(None, clock).guesses(7) == 7


def test_it_is_kept_for_guesses_that_take_a_training_step_each() -> None:
    """As those of activity perturbation do, on the whole batch: steps, guesses and passes of a second each."""
    clock = Clock()

    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain_network()

        def forward(self, inputs: Tensor) -> Tensor:
            clock.seconds += 1.0
            return self.inner(inputs)  # type: ignore[no-any-return]

    @dataclass(frozen=True)
    class Timed(fga.estimators.ActivityPerturbation):
        def __call__(self, snapshot: Any, n_guesses: int, generator: torch.Generator) -> Any:
            clock.seconds += 1.0 * n_guesses
            return super().__call__(snapshot, n_guesses, generator)

    pair = batch(0)
    for every, n_steps in ((20, 5000), (2000, 4001)):
        monitor = fga.Monitor(
            Passing(), cross_entropy, Timed(), every=every, at_most=0.05, predictions=False, clock=clock
        )
        for _ in range(n_steps):
            monitor.step(*pair)
            clock.seconds += 1.0
        dataset = monitor.dataset
        spent, training = dataset["measuring_seconds"].cumsum().values, dataset["training_seconds"].values
        assert (spent[1:] <= 0.05 * training[1:] + 1e-9).all() and dataset.attrs["spent_share"] <= 0.05
        guesses = dataset["n_guesses"].values[:, 0]
        if every == 20:  # The first takes 32 s and its checks; 2000 s of training pay for two.
            assert 4 <= len(guesses) <= 6 and set(guesses) == {LEAST}
            assert training[-1] > 4000
        else:
            assert list(guesses) == [LEAST, LEAST, 64]


def test_the_monitor_keeps_it_and_says_so() -> None:
    clock = Clock()

    def slow(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: Any) -> Any:
        clock.seconds += 0.01
        return {name: weight.detach().clone() for name, weight in network.named_parameters()}

    monitor = fga.Monitor(
        plain_network(),
        cross_entropy,
        fga.estimators.from_function(slow),
        schedule=lambda step: step % 2 == 0,
        guesses=64,
        at_most=0.1,
        clock=clock,
    )
    for step in range(60):
        monitor.step(*batch(step % 3))
        clock.seconds += 1.0
    dataset = monitor.dataset
    spent, training = dataset["measuring_seconds"].cumsum(), dataset["training_seconds"]
    assert float(dataset.attrs["spent_share"]) <= 0.1
    assert (spent[1:].values <= 0.1 * training[1:].values + 1e-9).all()
    assert float(dataset["n_guesses"].min()) == LEAST and float(dataset["n_guesses"].max()) <= 64
    measured = dataset.sizes["step"]
    skipped = int(dataset["skipped"].sum()) + dataset.attrs["left_out_skipped"]
    assert measured + skipped == 30 and 5 <= measured < 20
    assert dataset.attrs["at_most"] == 0.1
    assert np.all(np.diff(training) > 0)
