"""Models of public packages: the brute force agrees with itself, and what the package measures agrees with it."""

from __future__ import annotations

import pytest
import torch

import fganalysis as fga
from tests.networks.brute_force import (
    call,
    example_slopes,
    forward_mode,
    gradient,
    output_gradients,
    outputs,
    pulled_back,
    taps,
    trainable,
    untapped,
)
from tests.networks.exact_moments import dense, moments
from tests.networks.public_models import PUBLIC, USED_OUTSIDE
from tests.networks.test_measured_moments import MOST_ERRORS, z_scores
from tests.networks.zoo import EXAMPLES, Case

# Some of the packages compute a softmax, rotations or means of squares in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(params=PUBLIC)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return PUBLIC[name]()


def test_parts_of_examples_sum_to_the_loss(case: Case) -> None:
    result = call(case.network, case.inputs)
    parts = case.parts(result, case.targets)
    assert parts.shape == (EXAMPLES,)
    torch.testing.assert_close(parts.sum(), case.loss_fn(result, case.targets), rtol=1e-10, atol=1e-12)


def test_slopes_of_examples_are_those_of_reverse_mode(case: Case) -> None:
    names = taps(case.network, case.inputs)
    known = outputs(case.network, case.inputs, names)
    generator = torch.Generator().manual_seed(1)
    directions = {
        name: [[torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves] for leaves in calls]
        for name, calls in known.items()
    }
    slopes = example_slopes(case.network, case.parts, case.inputs, case.targets, directions)
    at_outputs = output_gradients(case.network, case.loss_fn, case.inputs, case.targets, names)
    total = sum(
        (direction * value).sum()
        for name in names
        for ours, others in zip(directions[name], at_outputs[name], strict=True)
        for direction, value in zip(ours, others, strict=True)
    )
    torch.testing.assert_close(slopes.sum(), total, **CLOSE)


def test_gradients_at_outputs_pulled_back_are_the_gradient(name: str, case: Case) -> None:
    names = taps(case.network, case.inputs)
    at_outputs = output_gradients(case.network, case.loss_fn, case.inputs, case.targets, names)
    with forward_mode():
        found = pulled_back(case.network, case.inputs, at_outputs)
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)
    assert set(found) | set(untapped(case.network, case.inputs)) == set(exact) == set(trainable(case.network))
    for parameter, value in found.items():
        if parameter in USED_OUTSIDE.get(name, []):
            assert not torch.allclose(value, exact[parameter], rtol=0.1)
        else:
            torch.testing.assert_close(value, exact[parameter], **CLOSE)


def test_what_is_measured_is_what_is_exact(name: str, case: Case) -> None:
    if name in USED_OUTSIDE:
        with pytest.raises(ValueError, match=f"'{USED_OUTSIDE[name][0]}'"):
            fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
        return
    snapshot = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)
    for layer, value in zip(snapshot.weights, snapshot.weight_gradients, strict=True):
        for parameter, part in layer.by_parameter(value).items():
            torch.testing.assert_close(part, exact[parameter], **CLOSE)
    scores = z_scores(case, "example", moments(dense(case, taps(case.network, case.inputs))))
    assert len(scores) == len([layer for layer in snapshot.weights if layer.taps])
    assert max(abs(score) for score in scores.values()) <= MOST_ERRORS, scores


@pytest.mark.parametrize("estimator", ["weight", "upstream", "orthogonal"])
def test_guesses_are_drawn(name: str, case: Case, estimator: str) -> None:
    if name in USED_OUTSIDE:
        pytest.skip("is not captured")
    snapshot = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    measured = fga.sample(snapshot, estimator, 64, seed=0).sel(space="weight", layer="all")
    assert float(measured.mse) > 0
