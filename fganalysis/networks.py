"""The small networks studied, initialised from a seed of their own."""

import itertools
from collections.abc import Callable, Sequence

import torch


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
        If there are fewer than two sizes, or one is below 1.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must have at least 2 entries, the input's and the output's, got {len(sizes)}")
    if min(sizes) < 1:
        raise ValueError(f"sizes must all be at least 1, got {min(sizes)}")
    generator = torch.Generator().manual_seed(seed)
    modules: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        if modules:
            modules.append(activation())
        # Without skip_init the constructor draws its own weights first, from the global generator.
        linear = torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out, bias=bias, dtype=torch.float32)
        torch.nn.init.kaiming_uniform_(linear.weight, a=5**0.5, generator=generator)
        if bias:
            torch.nn.init.uniform_(linear.bias, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        modules.append(linear)
    return torch.nn.Sequential(*modules).to(dtype)
