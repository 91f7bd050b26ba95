"""The brute force against itself, on every network of the zoo: finite differences, sums over examples, both modes."""

from __future__ import annotations

import pytest
import torch

from tests.networks.brute_force import (
    call,
    example_gradients,
    example_output_gradients,
    example_slopes,
    forward_mode,
    gradient,
    jacobian_between,
    output_gradients,
    outputs,
    pulled_back,
    taps,
    trainable,
    untapped,
)
from tests.networks.zoo import EXAMPLES, ZOO, Case

EXACT = {"rtol": 1e-10, "atol": 1e-12}
UNTAPPED = {"vit": ["token", "positions"]}
TAPS = {
    "mlp": ["0", "2", "4"],
    "resnet": [
        "stem", "norm",
        *(f"blocks.0.{part}" for part in ("conv1", "norm1", "conv2", "norm2")),
        *(f"blocks.1.{part}" for part in ("conv1", "norm1", "conv2", "norm2", "shortcut.0", "shortcut.1")),
        "head",
    ],
    "lstm": ["recurrent", "read"],
    "attention": ["norm", "attention", "read"],
    "adapters": ["0.down", "0.up", "2.down", "2.up"],
    "vit": ["patches", "norm", "attend", "project", "head"],
    "own_parameters": ["0", "1", "2"],
    "called_twice": ["inner", "read"],
}  # fmt: skip


@pytest.fixture(params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return ZOO[name]()


def noise(like: object, seed: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves] for leaves in like]


def dot(left: list[list[torch.Tensor]], right: list[list[torch.Tensor]]) -> torch.Tensor:
    return sum(
        (one * other).sum()
        for ours, others in zip(left, right, strict=True)
        for one, other in zip(ours, others, strict=True)
    )


def test_networks_are_tiny_and_ready(case: Case) -> None:
    assert not any(module.training for module in case.network.modules())
    values = trainable(case.network)
    assert {value.dtype for value in values.values()} == {torch.float64}
    assert 0 < sum(value.numel() for value in values.values()) < 420


def test_a_case_is_made_anew_each_time_and_the_same(name: str) -> None:
    before = torch.get_rng_state()
    first, second = ZOO[name](), ZOO[name]()
    assert torch.equal(before, torch.get_rng_state())
    assert first.network is not second.network
    for ours, other in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, other)


def test_parts_of_examples_sum_to_the_loss(case: Case) -> None:
    result = call(case.network, case.inputs)
    parts = case.parts(result, case.targets)
    assert parts.shape == (EXAMPLES,)
    torch.testing.assert_close(parts.sum(), case.loss_fn(result, case.targets), **EXACT)


def test_gradients_of_examples_sum_to_the_gradient(case: Case) -> None:
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)
    by_example = example_gradients(case.network, case.parts, case.inputs, case.targets)
    assert set(exact) == set(by_example) == set(trainable(case.network))
    for name, value in exact.items():
        torch.testing.assert_close(by_example[name].sum(0), value, **EXACT)


def test_gradients_are_those_of_finite_differences_and_of_autograd(case: Case) -> None:
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)
    parameters = {name: p for name, p in case.network.named_parameters() if p.requires_grad}
    loss = case.loss_fn(call(case.network, case.inputs), case.targets)
    for (name, value), found in zip(exact.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True):
        torch.testing.assert_close(value, found, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
    generator = torch.Generator().manual_seed(5)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()}
    slope = sum((direction[name] * exact[name]).sum() for name in exact)
    step = 1e-6
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in parameters.items():
                p.add_(sign * step * direction[name])
            losses.append(case.loss_fn(call(case.network, case.inputs), case.targets))
            for name, p in parameters.items():
                p.sub_(sign * step * direction[name])
    # Two losses of size 1 with 16 digits, 2e-6 apart: 1e-9 is what a difference can tell.
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), slope.detach(), rtol=1e-6, atol=1e-7)


def test_slopes_of_examples_are_those_of_reverse_mode(case: Case) -> None:
    names = taps(case.network, case.inputs)
    known = outputs(case.network, case.inputs, names)
    directions = {name: noise(known[name], seed) for seed, name in enumerate(names)}
    slopes = example_slopes(case.network, case.parts, case.inputs, case.targets, directions)
    assert slopes.shape == (EXAMPLES,)
    at_outputs = output_gradients(case.network, case.loss_fn, case.inputs, case.targets, names)
    total = sum(dot(directions[name], at_outputs[name]) for name in names)
    torch.testing.assert_close(slopes.sum(), total, **EXACT)
    by_example = example_output_gradients(case.network, case.parts, case.inputs, case.targets, names)
    for example in range(EXAMPLES):
        alone = {name: [[leaf[example] for leaf in leaves] for leaves in calls] for name, calls in by_example.items()}
        torch.testing.assert_close(slopes[example], sum(dot(directions[name], alone[name]) for name in names), **EXACT)


def test_examples_interact_in_no_network(case: Case) -> None:
    names = taps(case.network, case.inputs)
    for calls in example_output_gradients(case.network, case.parts, case.inputs, case.targets, names).values():
        for leaf in (leaf for leaves in calls for leaf in leaves):
            belongs = (leaf != 0).sum(0)
            # A number is of one example, or of all: those of a positional embedding.
            assert (belongs <= 1).all() or (belongs == EXAMPLES).all()


@pytest.mark.parametrize(
    ("name", "module", "axis"),
    [
        ("gpt", "tokens", 0),
        ("gpt", "positions", None),
        ("lstm", "recurrent", 1),
        ("lstm_batch_first", "recurrent", 0),
        ("positions_first", "first", 1),
        ("conv", "0", 0),
    ],
)
def test_outputs_belong_to_their_example_wherever_its_axis_stands(name: str, module: str, axis: int | None) -> None:
    case = ZOO[name]()
    (leaf, *_), *_ = example_output_gradients(case.network, case.parts, case.inputs, case.targets, [module])[module]
    if axis is None:
        assert (leaf != 0).all()
        return
    for example in range(EXAMPLES):
        others = [other for other in range(EXAMPLES) if other != example]
        assert leaf[example].select(axis, example).any()
        assert not leaf[example].index_select(axis, torch.tensor(others)).any()


@pytest.mark.parametrize(("name", "expected"), [("windows", [0, 0, 1, 1, 2, 2]), ("windows_first", [0, 1, 2, 0, 1, 2])])
def test_windows_belong_to_their_example(name: str, expected: list[int]) -> None:
    case = ZOO[name]()
    ((leaf,),) = example_output_gradients(case.network, case.parts, case.inputs, case.targets, ["first"])["first"]
    assert (leaf != 0).any(2).int().argmax(0).tolist() == expected
    assert ((leaf != 0).any(2).sum(0) == 1).all()


def test_a_tied_weight_has_the_sum_of_both_uses() -> None:
    case = ZOO["gpt_tied"]()
    at_outputs = output_gradients(case.network, case.loss_fn, case.inputs, case.targets, ["tokens", "head"])
    embedded, read = (pulled_back(case.network, case.inputs, {name: at_outputs[name]}) for name in ("tokens", "head"))
    assert set(embedded) == set(read) == {"tokens.weight"}
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)["tokens.weight"]
    torch.testing.assert_close(embedded["tokens.weight"] + read["tokens.weight"], exact, **EXACT)
    assert not torch.allclose(embedded["tokens.weight"], exact) and not torch.allclose(read["tokens.weight"], exact)


def test_gradients_at_outputs_pulled_back_are_the_gradient(name: str, case: Case) -> None:
    names = taps(case.network, case.inputs)
    at_outputs = output_gradients(case.network, case.loss_fn, case.inputs, case.targets, names)
    found = pulled_back(case.network, case.inputs, at_outputs)
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)
    assert untapped(case.network, case.inputs) == UNTAPPED.get(name, [])
    assert set(found) == set(exact) - set(UNTAPPED.get(name, []))
    for parameter, value in found.items():
        torch.testing.assert_close(value, exact[parameter], **EXACT)


@pytest.mark.parametrize("name", TAPS)
def test_taps_are_those_written_down(name: str) -> None:
    case = ZOO[name]()
    assert taps(case.network, case.inputs) == TAPS[name]


def test_jacobians_between_modules_are_total() -> None:
    case = ZOO["mlp"]()
    found = jacobian_between(case.network, case.inputs, "0", "2")
    assert found.shape == (EXAMPLES, 4, EXAMPLES, 3)
    before = outputs(case.network, case.inputs, ["0"])["0"][0][0]
    for example in range(EXAMPLES):
        slope = 1 - before[example].tanh().square()
        expected = case.network[2].weight.detach() * slope
        torch.testing.assert_close(found[example, :, example], expected, **EXACT)
    assert not found[0, :, 1].any()


def test_jacobians_go_through_skip_paths_and_chain() -> None:
    case = ZOO["resnet"]()
    (values,) = outputs(case.network, case.inputs, ["norm"])["norm"][0:1]
    upstream = jacobian_between(case.network, case.inputs, "norm", "head")
    at_head = output_gradients(case.network, case.loss_fn, case.inputs, case.targets, ["head"])["head"][0][0]
    at_norm = output_gradients(case.network, case.loss_fn, case.inputs, case.targets, ["norm"])["norm"][0][0]
    torch.testing.assert_close(torch.tensordot(at_head, upstream, at_head.ndim), at_norm, **EXACT)
    assert values[0].shape == at_norm.shape


def test_forward_mode_leaves_the_settings_as_they_were() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with forward_mode():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_wrong_number_of_calls_is_noticed() -> None:
    case = ZOO["called_twice"]()
    with pytest.raises(AssertionError, match="2 calls, perturbations for 1"):
        example_slopes(case.network, case.parts, case.inputs, case.targets, {"inner": torch.zeros(EXAMPLES, 3)})
