"""The small networks studied, initialised from a seed of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fganalysis.arguments import check_choice, check_flag, check_kind, check_seed, check_whole, described

LARGEST_SIZE = 2**24  # Units of a layer; more is a mistake, and fails where the memory is taken.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def mlp(
    sizes: Sequence[int],
    bias: bool = True,
    seed: int = 0,
    activation: Callable[[], torch.nn.Module] = torch.nn.ReLU,
    dtype: torch.dtype = torch.float32,
) -> torch.nn.Sequential:
    """Build a fully connected network: linear layers with an activation between each two, none after the last.

    Weights are uniform on ±1/√fan_in, which is Kaiming's law with a = √5, and so are biases, as torch draws both by
    default. They come from a generator of the network's own, so a seed names one network and the global generator is
    neither read nor advanced. They are drawn in float32 and then converted: a float64 network has the same weights.

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
    if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence | np.ndarray):
        raise ValueError(f"sizes must be a list of whole numbers, got {described(sizes)}")
    if len(sizes) < 2:
        raise ValueError(f"sizes must have at least 2 entries, the input's and the output's, got {len(sizes)}")
    for size in sizes:
        check_whole("each of sizes", size, 1, LARGEST_SIZE)
    check_flag("bias", bias)
    check_seed("seed", seed)
    check_choice("dtype", dtype, DTYPES)
    generator = torch.Generator().manual_seed(int(seed))
    modules: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(map(int, sizes)):
        if modules:
            modules.append(_made(activation))
        # Without skip_init the constructor draws its own weights first, from the global generator.
        linear = torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out, bias=bias, dtype=torch.float32)
        torch.nn.init.kaiming_uniform_(linear.weight, a=5**0.5, generator=generator)
        if bias:
            torch.nn.init.uniform_(linear.bias, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        modules.append(linear)
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
