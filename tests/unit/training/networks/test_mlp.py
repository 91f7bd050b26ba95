"""Initial networks: the law of their weights, and that a seed is all they depend on."""

import re

import numpy as np
import pytest
import torch

from fganalysis.training.networks import mlp

SEED_PAPER = [40, 128, 128, 128, 10]


def assert_same_weights(left: torch.nn.Module, right: torch.nn.Module) -> None:
    for (name, ours), (other_name, other) in zip(left.named_parameters(), right.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(ours, other), name


def test_linear_layers_alternate_with_activations_and_the_last_has_none() -> None:
    network = mlp(SEED_PAPER, bias=False, activation=torch.nn.Tanh)
    linear = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    assert list(linear) == ["0", "2", "4", "6"]
    assert [(module.in_features, module.out_features) for module in linear.values()] == [
        (40, 128),
        (128, 128),
        (128, 128),
        (128, 10),
    ]
    assert all(module.bias is None for module in linear.values())
    assert [type(network[index]) for index in (1, 3, 5)] == [torch.nn.Tanh] * 3
    assert len(network) == 7


@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_those_torch_draws_from_the_same_seed(bias: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        by_torch = torch.nn.Sequential(
            torch.nn.Linear(5, 8, bias=bias), torch.nn.ReLU(), torch.nn.Linear(8, 3, bias=bias)
        )
    assert_same_weights(mlp([5, 8, 3], bias=bias, seed=7), by_torch)


def test_weights_are_uniform_with_variance_a_third_of_one_over_fan_in() -> None:
    # 512 · 512 uniform numbers: the relative standard error of their variance is √(4/5)/512, so 1 % is 5.7 of it.
    weight = mlp([512, 512], bias=False)[0].weight
    bound = 512**-0.5
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.999 * bound
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.01)


def test_a_seed_is_all_the_weights_depend_on() -> None:
    first = mlp(SEED_PAPER, seed=3)
    torch.rand(10)
    assert_same_weights(first, mlp(SEED_PAPER, seed=3))
    assert not torch.equal(first[0].weight, mlp(SEED_PAPER, seed=4)[0].weight)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    mlp(SEED_PAPER)
    assert torch.equal(before, torch.get_rng_state())


def test_every_type_has_the_same_weights() -> None:
    double = mlp([4, 3, 2], dtype=torch.float64)
    assert double[0].weight.dtype == torch.float64
    assert_same_weights(double, mlp([4, 3, 2]).double())


def test_every_hidden_layer_has_an_activation_of_its_own() -> None:
    network = mlp([4, 3, 3, 2], activation=torch.nn.PReLU)
    assert network[1] is not network[3]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([40], "sizes must have at least 2 entries, the input's and the output's, got 1"),
        ([40, 0, 10], "each of sizes must be a whole number from 1 to 16777216, got 0"),
        ([3, 2.5], "each of sizes must be a whole number from 1 to 16777216, got 2.5"),
        ([3, float("nan")], "each of sizes must be a whole number from 1 to 16777216, got nan"),
        ([3, True], "each of sizes must be a whole number from 1 to 16777216, got True"),
        ([3, 10**12], "each of sizes must be a whole number from 1 to 16777216, got 1000000000000"),
        (["a", "b"], "each of sizes must be a whole number from 1 to 16777216, got 'a'"),
        ("40", "sizes must be a list of whole numbers, got '40'"),
        (None, "sizes must be a list of whole numbers, got None"),
        (40, "sizes must be a list of whole numbers, got 40"),
        ({40: 10}, "sizes must be a list of whole numbers, got a dict"),
    ],
)
def test_sizes_that_make_no_network_are_refused(sizes: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        mlp(sizes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bias": "no"}, "bias must be True or False, got 'no'"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
        ({"seed": 2**70}, "seed must be below 2**63"),
        ({"activation": "relu"}, "activation must be a class or function that makes a module"),
        ({"activation": None}, "activation must be a class or function that makes a module"),
        ({"activation": torch.nn.ReLU()}, "activation must be a class or function that makes a module"),
        ({"activation": torch.relu}, "activation must be a class or function that makes a module"),
        ({"activation": lambda: 3}, "what activation makes must be a torch.nn.Module, got 3"),
        ({"dtype": "float64"}, "dtype must be torch.float16 or"),
        ({"dtype": torch.int64}, "dtype must be torch.float16 or"),
    ],
)
def test_other_arguments_are_refused_in_one_sentence(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        mlp(**({"sizes": [3, 2, 1]} | changed))


def test_whole_numbers_of_numpy_are_sizes_and_seeds() -> None:
    assert_same_weights(mlp(np.array([4, 3, 2]), seed=np.int64(3)), mlp([4, 3, 2], seed=3))
