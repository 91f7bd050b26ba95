"""Models of public packages: the brute force agrees with itself, and what the package measures agrees with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import OrthogonalUpstream
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


ESTIMATORS: list[Any] = ["weight", "activity", "upstream", OrthogonalUpstream(k=2)]


@pytest.fixture(scope="module", params=[name for name in PUBLIC if name not in USED_OUTSIDE])
def snapshot(request: pytest.FixtureRequest) -> Snapshot:
    case = PUBLIC[request.param]()
    return fga.capture(case.network, case.loss_fn, case.inputs, case.targets)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=fga.estimators.label)
def test_guesses_are_sampled(snapshot: Snapshot, estimator: Any) -> None:
    measured = fga.sample(snapshot, estimator, 64, seed=0).sel(space="weight", layer="all")
    assert float(measured.mse) > 0


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=fga.estimators.label)
def test_guesses_are_predicted_or_nan(snapshot: Snapshot, estimator: Any) -> None:
    predicted = fga.predict(snapshot, estimator).sel(space="weight")
    exact = fga.sample(snapshot, estimator, 2).sel(space="weight").gradient_norm
    known = predicted.gradient_norm.notnull() & exact.notnull()
    assert bool((abs(predicted.gradient_norm / exact - 1).where(known, 0.0) < 1e-6).all())


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=fga.estimators.label)
def test_every_parameter_is_trained(name: str, case: Case, estimator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(case.network.parameters(), lr=1e-4)
    before = {parameter: value.clone() for parameter, value in trainable(case.network).items()}
    asked = (case.network, case.loss_fn, case.inputs, case.targets, estimator, generator)
    if name in USED_OUTSIDE:
        with pytest.raises(ValueError, match=f"the gradient of '{USED_OUTSIDE[name][0]}' has norm"):
            fga.estimate_gradient(*asked)
        return
    if estimator != "weight" and (unseen := untapped(case.network, case.inputs)):
        with pytest.raises(ValueError, match=f"parameter '{unseen[0]}' is in no tap.*untapped='perturb'"):
            fga.estimate_gradient(*asked)
    for _ in range(10):
        optimizer.zero_grad()
        loss = fga.estimate_gradient(*asked, untapped="perturb")
        assert bool(loss.isfinite())
        optimizer.step()
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)
    for parameter, value in trainable(case.network).items():
        # A bias of attention's keys moves nothing: the softmax does not see it.
        assert not torch.equal(value, before[parameter]) or exact[parameter].abs().max() < 1e-12, parameter


def test_a_padding_word_that_occurs_is_measured() -> None:
    case = PUBLIC["transformers_bert"]()
    case.inputs["input_ids"][0, 2:] = 0
    snapshot = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    loss = case.loss_fn(call(case.network, case.inputs), case.targets)
    (exact,) = torch.autograd.grad(loss, [case.network.get_parameter("bert.embeddings.word_embeddings.weight")])
    layer = next(layer for layer in snapshot.weights if layer.name == "bert.embeddings.word_embeddings")
    found = layer.by_parameter(snapshot.weight_gradients[snapshot.layers.index(layer.name)])
    torch.testing.assert_close(found["bert.embeddings.word_embeddings.weight"], exact, **CLOSE)
    assert not bool(exact[0].any())
