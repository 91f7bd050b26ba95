"""Small networks, right and wrong in one way each, and the norm of their exact gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fganalysis.capturing.snapshot import Snapshot

EXAMPLES = 16


def batch(inputs: int = 8, classes: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(EXAMPLES, inputs, generator=generator, dtype=torch.float64).to(dtype)
    return drawn, torch.randint(classes, (EXAMPLES,), generator=generator)


def mlp(*sizes: int, between: Callable[[], nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for below, above in pairwise(sizes):
            layers += [nn.Linear(below, above, dtype=dtype), between()]
    return nn.Sequential(*layers[:-1])


def autograd_norm(network: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_fn(network(x), y), trained)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def norm(snapshot: Snapshot) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in snapshot.weight_gradients))


class Scaled(torch.autograd.Function):
    """tanh whose backward pass is its derivative times a number."""

    @staticmethod
    def forward(ctx, z, factor):  # type: ignore[no-untyped-def]
        result = torch.tanh(z)
        ctx.save_for_backward(result)
        ctx.factor = factor
        return result

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (result,) = ctx.saved_tensors
        return g * (1 - result**2) * ctx.factor, None


class ScaledTanh(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return Scaled.apply(z, self.factor)  # type: ignore[no-any-return, no-untyped-call]


class Forward(nn.Module):
    """Two Linear modules of a network and whatever forward pass a test makes of them."""

    def __init__(self, of: Callable[[Forward, Tensor], Tensor], hidden: int = 16, bias: bool = True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.a, self.h = nn.Linear(8, hidden, bias=bias), nn.Linear(hidden, 4, bias=bias)
        self.of = of
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.of(self, x)


def straight_through(network: Forward, x: Tensor) -> Tensor:
    z = network.a(x)
    return network.h(z + (torch.sign(z) - z).detach())


def batch_mean(network: Forward, x: Tensor) -> Tensor:
    z = network.a(x)
    return network.h(torch.tanh(z - z.mean(0)))


def tied(network: Forward, x: Tensor) -> Tensor:
    return torch.tanh(network.a(x)) @ network.a.weight


def masked(network: Forward, x: Tensor) -> Tensor:
    return network.h(torch.tanh(F.linear(x, network.a.weight * (network.a.weight > 0), network.a.bias)))


def with_counter(network: Forward, x: Tensor) -> Tensor:
    return network.h(torch.tanh(network.a(x)) * (1 + 0.1 * network.calls))


def hooked() -> nn.Module:
    network = mlp(8, 16, 4)
    network[0].register_forward_hook(lambda module, arguments, output: 2 * output)
    return network


def weight_normed() -> nn.Module:
    network = mlp(8, 16, 4)
    nn.utils.parametrizations.weight_norm(network[0])
    return network
