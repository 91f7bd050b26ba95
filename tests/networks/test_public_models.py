"""The brute force on models of public packages: what the tests of the package on them stand on."""

from __future__ import annotations

import pytest
import torch

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
from tests.networks.public_models import PUBLIC, USED_OUTSIDE
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
