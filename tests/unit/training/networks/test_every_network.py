"""What holds for every network: a seed is all that its weights depend on, and it can be differentiated both ways."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from fganalysis import networks
from tests.networks.brute_force import untapped

Make = Callable[..., torch.nn.Module]

IMAGES, TOKENS = torch.rand(2, 1, 16, 16), torch.arange(8).reshape(2, 4) % 5
TABLE: dict[str, tuple[Make, torch.Tensor, tuple[int, ...]]] = {
    "mlp": (lambda **given: networks.mlp([16, 8, 3], **given), IMAGES[:, 0, 0], (2, 3)),
    "conv": (lambda **given: networks.conv((1, 16, 16), 3, **given), IMAGES, (2, 3)),
    "conv_batch_norm": (lambda **given: networks.conv((1, 16, 16), 3, batch_norm=True, **given), IMAGES, (2, 3)),
    "resnet": (lambda **given: networks.resnet((4, 6), (1, 2), (1, 16, 16), 3, **given), IMAGES, (2, 3)),
    "mixer": (lambda **given: networks.mixer((1, 16, 16), 3, 4, 8, 2, 2, **given), IMAGES, (2, 3)),
    "gpt": (lambda **given: networks.gpt(5, 4, 8, 2, 2, tied=False, **given), TOKENS, (2, 4, 5)),
    "gpt_tied": (lambda **given: networks.gpt(5, 4, 8, 2, 2, tied=True, **given), TOKENS, (2, 4, 5)),
}


@pytest.fixture(params=TABLE)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def ready(kind: str, **given: object) -> torch.nn.Module:
    return TABLE[kind][0](**given).eval()


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype and torch.equal(value, right[name]), name


def differentiable(kind: str) -> tuple[Callable[[dict[str, torch.Tensor]], torch.Tensor], dict[str, torch.Tensor]]:
    """The outputs as a function of the parameters, and the parameters, in float64."""
    network = ready(kind, dtype=torch.float64)
    inputs = TABLE[kind][1]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    values = {name: value.detach() for name, value in network.named_parameters()}
    return lambda given: torch.func.functional_call(network, given, (inputs,)), values


def directions(values: dict[str, torch.Tensor], *leading: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(*leading, *value.shape, generator=generator, dtype=value.dtype)
        for name, value in values.items()
    }


def test_the_table_has_every_network() -> None:
    assert {kind.split("_")[0] for kind in TABLE} == set(networks.__all__)


def test_outputs_have_the_shape_stated(kind: str) -> None:
    _, inputs, shape = TABLE[kind]
    outputs = ready(kind)(inputs)
    assert outputs.shape == shape
    assert outputs.isfinite().all() and outputs.std() > 0


def test_networks_come_in_training_mode(kind: str) -> None:
    assert all(module.training for module in TABLE[kind][0]().modules())


def test_a_seed_is_all_that_weights_depend_on(kind: str) -> None:
    first = state(ready(kind, seed=3))
    torch.rand(10)
    assert_same(first, state(ready(kind, seed=3)))
    other = state(ready(kind, seed=4))
    drawn = [name for name, value in first.items() if value.is_floating_point() and value.unique().numel() > 1]
    assert len(drawn) >= 2
    for name in drawn:
        assert not torch.equal(first[name], other[name]), name


def test_no_two_weights_are_drawn_from_the_same_numbers(kind: str) -> None:
    values = [value.flatten() for value in dict(ready(kind).named_parameters()).values() if value.numel() > 3]
    standard = [value / value.abs().max() for value in values if value.unique().numel() > 1]
    heads = torch.stack([value[:4] for value in standard])
    assert len(heads.unique(dim=0)) == len(heads)


def test_global_generators_are_left_alone(kind: str) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    ready(kind)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    np.testing.assert_array_equal(before[2], np.random.get_state()[1])


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_every_type_has_the_same_weights(kind: str) -> None:
    assert_same(state(ready(kind, dtype=torch.float64)), state(ready(kind).double()))
    assert_same(state(ready(kind, dtype=torch.bfloat16)), state(ready(kind).bfloat16()))


def test_the_default_type_does_not_matter(kind: str, double_by_default: None) -> None:
    found = state(ready(kind))
    torch.set_default_dtype(torch.float32)
    assert_same(found, state(ready(kind)))


def test_every_parameter_belongs_to_a_module_that_is_called(kind: str) -> None:
    assert untapped(ready(kind), TABLE[kind][1]) == []


def test_forward_mode_agrees_with_reverse_mode(kind: str) -> None:
    outputs_of, values = differentiable(kind)
    direction = directions(values)
    outputs, moved = torch.func.jvp(outputs_of, (values,), (direction,))
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
    gradient = torch.func.grad(lambda given: (weights * outputs_of(given)).sum())(values)
    slope = sum((gradient[name] * direction[name]).sum() for name in values)
    torch.testing.assert_close((weights * moved).sum(), slope, rtol=1e-10, atol=1e-12)


def test_guesses_of_parameters_can_be_batched_in_both_modes(kind: str) -> None:
    outputs_of, values = differentiable(kind)
    many = directions(values, 3)
    moved = torch.func.vmap(lambda given: torch.func.jvp(outputs_of, (values,), (given,))[1])(many)
    there = torch.func.vmap(lambda given: outputs_of({name: values[name] + given[name] for name in values}))(many)
    for guess in range(3):
        one = {name: value[guess] for name, value in many.items()}
        torch.testing.assert_close(moved[guess], torch.func.jvp(outputs_of, (values,), (one,))[1])
        torch.testing.assert_close(there[guess], outputs_of({name: values[name] + one[name] for name in values}))


def test_nothing_that_a_module_gives_is_changed_afterwards(kind: str) -> None:
    network = ready(kind)
    given: list[tuple[torch.Tensor, int]] = []
    for module in network.modules():
        module.register_forward_hook(lambda _, __, output: given.append((output, output._version)))
    network(TABLE[kind][1])
    assert len(given) > 3
    assert all(output._version == version for output, version in given)


BAD = [
    ("conv", {"inputs": (1, 15, 28)}, "the height of inputs must be a whole number from 16 to 4096, got 15"),
    ("conv", {"inputs": (28, 28)}, "inputs must be an image's (channels, height, width), such as (1, 28, 28), got (28"),
    ("conv", {"inputs": 784}, "inputs must be an image's (channels, height, width), such as (1, 28, 28), got 784"),
    ("conv", {"inputs": (0, 28, 28)}, "the channels of inputs must be a whole number from 1 to 16777216, got 0"),
    ("conv", {"inputs": (1, 28, 28.0)}, "the width of inputs must be a whole number from 16 to 4096, got 28.0"),
    ("conv", {"classes": 0}, "classes must be a whole number from 1 to 16777216, got 0"),
    ("conv", {"batch_norm": "yes"}, "batch_norm must be True or False, got 'yes'"),
    ("conv", {"bias": 1}, "bias must be True or False, got 1"),
    ("conv", {"channels": ()}, "channels must have at least 1 entry, one for each convolution, got 0"),
    ("conv", {"channels": 15}, "channels must be a list of whole numbers, got 15"),
    ("conv", {"channels": (15, 40, 8)}, "the height of inputs must be a whole number from 36 to 4096, got 28"),
    (
        "conv",
        {"channels": [1] * 20},
        "channels must be of fewer convolutions: 20 halve an image of any size to nothing",
    ),
    ("conv", {"hidden": 2**24}, "a layer must have at most 2147483648 weights, these sizes give one of 10754195456"),
    ("conv", {"hidden": None}, "hidden must be a whole number from 1 to 16777216, got None"),
    ("resnet", {"widths": (8, 16)}, "widths and blocks must have an entry for each stage, got 2 and 4"),
    ("resnet", {"widths": 64}, "widths must be a list of whole numbers, got 64"),
    ("resnet", {"blocks": (2, 2, 0, 2)}, "each of blocks must be a whole number from 1 to 1000, got 0"),
    ("resnet", {"widths": (2**16, 1, 1, 1)}, "a layer must have at most 2147483648 weights, these sizes give one of"),
    ("resnet", {"inputs": "cifar10"}, "inputs must be an image's (channels, height, width)"),
    ("resnet", {"classes": 2.5}, "classes must be a whole number from 1 to 16777216, got 2.5"),
    ("mixer", {"patches": 5}, "patches must divide the height and width of inputs, got 5 for 32 × 32"),
    ("mixer", {"groups": 3}, "groups must divide the width, got 3 for 512"),
    ("mixer", {"groups": 0}, "groups must be a whole number from 1 to 16777216, got 0"),
    ("mixer", {"blocks": "4"}, "blocks must be a whole number from 1 to 1000, got '4'"),
    ("mixer", {"width": 2**18}, "a layer must have at most 2147483648 weights, these sizes give one of 4295229440"),
    (
        "gpt",
        {"vocabulary": 2**24, "width": 2**10},
        "a layer must have at most 2147483648 weights, these sizes give one of",
    ),
    ("gpt", {"blocks": 10**6}, "blocks must be a whole number from 1 to 1000, got 1000000"),
    ("gpt", {"heads": 3}, "heads must divide the width, got 3 for 128"),
    ("gpt", {"vocabulary": 10**12}, "vocabulary must be a whole number from 1 to 16777216, got 1000000000000"),
    ("gpt", {"tied": None}, "tied must be True or False, got None"),
    *((kind, {"seed": -1}, "seed must be a whole number of at least 0") for kind in ("conv", "resnet", "mixer", "gpt")),
    *((kind, {"dtype": "float64"}, "dtype must be torch.float16 or") for kind in ("conv", "resnet", "mixer", "gpt")),
]


@pytest.mark.parametrize(("kind", "changed", "message"), BAD)
def test_arguments_that_make_no_network_are_refused(kind: str, changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        getattr(networks, kind)(**changed)
    assert str(refusal.value).startswith(message)
