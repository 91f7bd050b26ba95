"""A fully connected network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from fganalysis.arguments import check_flag, check_kind, described
from fganalysis.training.networks.layers import checked_sizes, linear, seeded


def mlp(
    sizes: Sequence[int],
    bias: bool = True,
    seed: int = 0,
    activation: Callable[[], torch.nn.Module] = torch.nn.ReLU,
    dtype: torch.dtype = torch.float32,
) -> torch.nn.Sequential:
    """Build a fully connected network: linear layers with an activation between each two, none after the last.

    Weights are uniform on ±1/√fan_in, which is Kaiming's law with a = √5, and so are biases, as torch draws both by
    default. A generator with the given seed draws them, so a seed always gives the same network, and the global
    generator is neither read nor advanced. They are drawn in float32 and then converted: a float64 network has the same
    weights.

    Parameters
    ----------
    sizes
        Units of the input and of every layer, such as `[40, 128, 128, 128, 10]`.
    bias
        Whether the linear layers have biases.
    seed
        Seed of the initial weights.
    activation
        Called once for each hidden layer, gives the module put behind it.
    dtype
        Type of weights and biases.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, one is no whole number of at least 1, an activation is no module, or the
        type is no floating-point type.
    """
    units = checked_sizes("sizes", sizes, 2, "the input's and the output's")
    check_flag("bias", bias)
    generator = seeded(seed, dtype)
    modules: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(units):
        if modules:
            modules.append(_made(activation))
        modules.append(linear(fan_in, fan_out, generator, bool(bias)))
    return torch.nn.Sequential(*modules).to(dtype)


def _made(activation: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    words = "a class or function that makes a module, such as torch.nn.ReLU"
    if not callable(activation) or isinstance(activation, torch.nn.Module):
        raise ValueError(f"activation must be {words}, got {described(activation)}")
    try:
        module = activation()
    except TypeError as error:
        raise ValueError(f"activation must be {words}, called without arguments; this one needs some") from error
    check_kind("what activation makes", module, torch.nn.Module, "a torch.nn.Module")
    return module
