"""Small named checks of what every estimator must do, for the test suite of whoever writes one.

    @fganalysis.testing.parametrize_with_checks([MyEstimator(), MyEstimator(rank=2)])
    def test_my_estimator(estimator, check):
        check(estimator)

Each pair is a test of its own, named by the estimator and the check. All checks take tiny networks and a second.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor, nn

from fganalysis.arguments import check_kind, described
from fganalysis.assertions.moments import assert_moments_match
from fganalysis.assertions.unbiased import check_unbiased
from fganalysis.capturing.capture import capture
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Autodiff
from fganalysis.estimators import Estimator, label, passes_of, resolve
from fganalysis.predictions import closed_form_of, predict
from fganalysis.predictions.protocol import UNKNOWN
from fganalysis.results import schema

if TYPE_CHECKING:
    from pytest import MarkDecorator

Check = Callable[[str | Estimator], None]
CHECKS: dict[str, Check] = {}
GUESSES = 3
UNITS = 12  # At least as many as the directions that the estimators of the registry take by default.


def _check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


@_check
def guesses_are_as_many_as_asked_and_finite(estimator: str | Estimator) -> None:
    """Of 1 and of 3 guesses, in single and in double precision."""
    for dtype in (torch.float64, torch.float32):
        for n_guesses in (1, GUESSES):
            for guesses in _guesses(estimator, _snapshot(dtype), n_guesses):
                assert len(guesses) == n_guesses, f"{n_guesses} guesses were asked for, and there are {len(guesses)}"
                assert guesses.isfinite().all(), "a guess has numbers that are not finite"


@_check
def a_seed_gives_the_same_guesses_again(estimator: str | Estimator) -> None:
    """All noise comes from the generator that the estimator is given."""
    first, second = (_guesses(estimator, _snapshot(), GUESSES, seed=7) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True)), (
        "two calls with generators of the same seed give different guesses: draw all noise from the generator"
    )


@_check
def other_generators_are_left_alone(estimator: str | Estimator) -> None:
    """The global generators of torch, NumPy and Python are where they were."""

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    before = states()
    _guesses(estimator, _snapshot(), GUESSES)
    assert states() == before, "a global generator has been drawn from: draw all noise from the generator that is given"


@_check
def the_network_is_left_as_it_is(estimator: str | Estimator) -> None:
    """Weights, buffers, modes and gradients are the same after a call."""

    def state(network: nn.Module) -> tuple[Any, ...]:
        gradients = [None if weight.grad is None else weight.grad.clone() for weight in network.parameters()]
        return deepcopy(network.state_dict()), [module.training for module in network.modules()], gradients

    snapshot = _snapshot()
    weights, modes, gradients = state(snapshot.network)
    _guesses(estimator, snapshot, GUESSES)
    after, modes_after, gradients_after = state(snapshot.network)
    same = weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)
    assert same, "a weight or buffer of the network has changed"
    assert modes == modes_after, "a module is no longer in the mode in which it was"
    assert [each is None for each in gradients] == [each is None for each in gradients_after], ".grad has changed"


@_check
def the_loss_scales_the_guesses(estimator: str | Estimator) -> None:
    """Guesses of the gradient of 4 L are 4 times those of L: a power of two, which rounds nothing."""
    once, four_times = (_guesses(estimator, _snapshot(scale=scale), GUESSES, seed=3) for scale in (1.0, 4.0))
    for one, other in zip(once, four_times, strict=True):
        torch.testing.assert_close(other, 4 * one, rtol=1e-6, atol=1e-9)


@_check
def forward_mode_gives_the_same_guesses(estimator: str | Estimator) -> None:
    """A snapshot that is taken without any backward pass serves as well."""
    both = [_guesses(estimator, _snapshot(autodiff=autodiff), GUESSES, seed=3) for autodiff in ("reverse", "forward")]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9)


@_check
def a_convolution_is_guessed_or_refused_in_a_sentence(estimator: str | Estimator) -> None:
    """A network with rows, normalisation and parameters of no tap."""
    try:
        guessed = _guesses(estimator, _convolution(), GUESSES)
    except ValueError as error:
        assert "\n" not in str(error), f"the refusal is longer than a sentence: {error}"
        return
    assert all(guesses.isfinite().all() for guesses in guessed), "a guess has numbers that are not finite"


@_check
def the_mean_is_the_gradient(estimator: str | Estimator) -> None:
    """A second's guesses show no bias; `assert_unbiased` draws as many as it takes to exclude one."""
    verdict = check_unbiased(estimator, _snapshot(), max_guesses=2**14)
    assert verdict.outcome != "biased", str(verdict)


@_check
def the_closed_form_holds(estimator: str | Estimator) -> None:
    """What is measured lies where the registered closed form says; skipped for an estimator without one."""
    if closed_form_of(resolve(estimator)) is UNKNOWN:
        raise SkipTest(f"{label(estimator)} has no closed form: see fganalysis.register_closed_form")
    snapshot = _snapshot()
    predicted = predict(snapshot, estimator)
    if not any(predicted[name].notnull().any() for name in schema.QUANTITIES if name in predicted):
        raise SkipTest(f"the closed form of {label(estimator)} says nothing of this network")
    assert_moments_match(estimator, predicted, snapshot)


@_check
def a_step_states_its_passes(estimator: str | Estimator) -> None:
    """Forward and backward passes of a training step, skipped for an estimator that does not state them."""
    passes = passes_of(estimator, _snapshot())
    if passes is None:
        raise SkipTest(f"{label(estimator)} states no passes: fganalysis.progress_per_cost needs them")
    assert passes.forward + passes.tangent + passes.backward > 0, "a step takes at least one pass"


def parametrize_with_checks(
    estimators: Sequence[str | Estimator], *, expected_failures: Mapping[str, Mapping[str, str]] | None = None
) -> MarkDecorator:
    """Decorates a test of ``estimator`` and ``check``: a test for each pair.

    Args:
        estimators: keys of the registry or instances; the name of a test has the label of the results.
        expected_failures: by label, the reason for each check that the estimator is known to fail, such as
            ``{"upstream": {"the_mean_is_the_gradient": "biased by design"}}``. Such a test fails if the check passes.

    Raises:
        ValueError: no estimators, two of one label, or an expected failure of an unknown estimator or check.
    """
    import pytest

    check_kind("estimators", estimators, (list, tuple), "a list of estimators")
    labels = [label(estimator) for estimator in estimators]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"estimators must be one or several with different labels, got {described(labels)}")
    expected = expected_failures or {}
    for name, reasons in expected.items():
        unknown = [check for check in reasons if check not in CHECKS]
        if name not in labels or unknown:
            wrong = f"the check {described(unknown[0])}" if name in labels else f"the estimator {described(name)}"
            raise ValueError(f"expected_failures names {wrong}, which is not among those that are run")
    tests = [
        pytest.param(
            estimator,
            check,
            id=f"{name}-{check_name}",
            marks=[pytest.mark.xfail(reason=expected[name][check_name], strict=True)]
            if check_name in expected.get(name, {})
            else [],
        )
        for name, estimator in zip(labels, estimators, strict=True)
        for check_name, check in CHECKS.items()
    ]
    return pytest.mark.parametrize(("estimator", "check"), tests)


@cache
def _snapshot(dtype: torch.dtype = torch.float64, scale: float = 1.0, autodiff: Autodiff = "reverse") -> Snapshot:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(5, UNITS), nn.Tanh(), nn.Linear(UNITS, UNITS)).to(dtype)
    _fill(network, generator)
    inputs = torch.randn(4, 5, generator=generator, dtype=dtype)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * nn.functional.cross_entropy(outputs, targets)

    return capture(network, loss, inputs, torch.tensor([0, 1, 2, 0]), autodiff=autodiff)


@cache
def _convolution() -> Snapshot:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 3)
    ).double()
    _fill(network, generator)
    inputs = torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64)
    return capture(network, nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 2, 0]))


def _fill(network: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / 2)


def _guesses(estimator: str | Estimator, snapshot: Snapshot, n_guesses: int, seed: int = 0) -> list[Tensor]:
    """The guesses written out, each (guess, number): at the activations, where they are made there, and at weights."""
    generator = torch.Generator().manual_seed(seed)
    block = resolve(estimator)(snapshot, n_guesses, generator)
    return [guesses for guesses in block.dense(snapshot) if guesses is not None]
