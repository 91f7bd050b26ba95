"""Values of every wrong kind, and the judgement of what a call makes of them."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from fganalysis.training.datasets import Dataset
from fganalysis.training.networks import mlp

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 6, generator=GENERATOR), torch.randint(3, (16,), generator=GENERATOR)
DATA = Dataset(X, Y, X[:5], Y[:5])
NETWORK = mlp([6, 5, 3], seed=0)
SNAPSHOT = fga.capture(NETWORK, F.cross_entropy, X, Y)


def whole(outputs: torch.Tensor) -> tuple[int, ...]:
    return tuple(outputs.shape)


def guesses_at_activations(shape: Callable[[torch.Tensor], tuple[int, ...]], value: float = 1.0, **kind: Any) -> Any:
    return lambda snapshot, n, generator: ActivationEstimates(
        tuple(torch.full((n, *shape(tap.outputs)), value, **kind) for tap in snapshot.taps)
    )


def guesses_at_weights(coefficients: Callable[[int, int], tuple[int, ...]], value: float = 1.0) -> Any:
    return lambda snapshot, n, generator: WeightEstimates(
        torch.ones(coefficients(n, len(snapshot.taps))),
        tuple(torch.full((n, *tap.weight.shape), value) for tap in snapshot.taps),
    )


BAD_ESTIMATORS = {
    "NaN": guesses_at_activations(whole, float("nan")),
    "infinite": guesses_at_activations(whole, float("inf")),
    "one unit": guesses_at_activations(lambda outputs: (1, 1)),
    "no unit": guesses_at_activations(lambda outputs: (len(outputs), 0)),
    "no example": guesses_at_activations(lambda outputs: outputs.shape[1:]),
    "whole numbers": guesses_at_activations(whole, 1, dtype=torch.int64),
    "double": guesses_at_activations(whole, dtype=torch.float64),
    "one tap": lambda snapshot, n, generator: ActivationEstimates((torch.ones(n, 16, 5),)),
    "too many": lambda snapshot, n, generator: ActivationEstimates(
        tuple(torch.ones(n + 1, *tap.outputs.shape) for tap in snapshot.taps)
    ),
    "a list": lambda snapshot, n, generator: [torch.ones(n, *tap.outputs.shape) for tap in snapshot.taps],
    "None": lambda snapshot, n, generator: None,
    "a tensor": lambda snapshot, n, generator: torch.ones(n),
    "NumPy arrays": lambda snapshot, n, generator: ActivationEstimates(
        tuple(np.ones((n, *tap.outputs.shape)) for tap in snapshot.taps)
    ),
    "NaN weights": guesses_at_weights(lambda n, taps: (n, taps), float("nan")),
    "a coefficient": guesses_at_weights(lambda n, taps: (n,)),
    "many coefficients": guesses_at_weights(lambda n, taps: (n, taps + 1)),
}


class Tuple(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.layer(inputs),)


class Uncopyable(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)
        self.computed = self.layer.weight * 2

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)


def batch_norm() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))


ANYTHING: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    3,
    1.5,
    10**9,
    2**70,
    float("nan"),
    float("inf"),
    np.float64(2),
    np.int64(2),
    1j,
    "",
    "activity",
    "x\0y",
    b"relu",
    [],
    [None],
    [1.5],
    [0, 0],
    (),
    {},
    {"a": 1},
    {1, 2},
    range(3),
    object(),
    int,
    torch.nn.Linear,
    print,
    lambda: None,
    lambda *arguments: None,
    lambda *arguments: "text",
    torch.tensor(1.0),
    torch.tensor([]),
    torch.ones(16, 6).numpy(),
    torch.ones(16, 6, dtype=torch.float64),
    torch.ones(16, 6, dtype=torch.int64),
    torch.ones(16, 6, dtype=torch.complex64),
    torch.ones(16, 5),
    torch.full((16,), 3),
    torch.full((16,), -1),
    torch.full((16,), float("nan")),
    torch.ones(16, 6).to_sparse(),
    torch.ones(16, 6, device="meta"),
    X,
    Y,
    DATA,
    NETWORK,
    SNAPSHOT,
    torch.Generator(),
    np.random.default_rng(0),
    Path("nowhere/at/all"),
    Path(__file__),
    Path(),
    torch.optim.SGD(NETWORK.parameters()),
]
LOSSES = [
    lambda outputs, targets: 1.0,
    lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
    lambda outputs, targets: outputs.sum(),
    lambda outputs, targets: outputs.argmax(1).double().mean(),
    lambda outputs, targets: F.cross_entropy(outputs, targets) * float("nan"),
    lambda outputs, targets: F.mse_loss(outputs, targets),
    lambda outputs: outputs.mean(),
    torch.nn.CrossEntropyLoss(),
    torch.nn.CrossEntropyLoss,
]
NETWORKS = [
    Tuple(),
    Uncopyable(),
    batch_norm(),
    NETWORK[:1],
    torch.nn.Identity(),
    torch.nn.Sequential(),
    torch.nn.Linear(6, 3),
    torch.nn.LazyLinear(3),
    mlp([5, 3]),
    mlp([6, 3], dtype=torch.float64),
    mlp([6, 3], dtype=torch.float16),
    mlp([6, 3]).to("meta"),
    mlp([6, 3]).requires_grad_(False),
    torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout()),
    torch.nn.LSTM(6, 3),
]

# Right, but as long as the number asks for, or as large.
TOO_LONG = {(name, number) for name in ("epochs", "n_guesses") for number in (10**9, 2**70)}


def judged(call: Callable[[], Any]) -> str:
    """Nothing where a call returns or is refused in one sentence of ours; otherwise what happened."""
    try:
        call()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = "/fganalysis/" in frame.filename
        raised = ours and linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise")
        said = str(error)
        if not (isinstance(error, ValueError) and raised and len(said) <= 400 and "\n" not in said):
            return f"{type(error).__name__}: {said[:200]} at {frame.filename}:{frame.lineno}"
    return ""


def walk(function: Callable[..., Any], right: dict[str, Any], name: str, values: list[Any]) -> dict[str, str]:
    """What happened for each wrong value of one argument, without those that end well."""
    told = {}
    for index, value in enumerate(values):
        try:
            too_long = (name, value) in TOO_LONG
        except (TypeError, RuntimeError):
            too_long = False
        if not too_long and (said := judged(partial(function, **(right | {name: value})))):
            told[f"{index}: {type(value).__name__} {str(value)[:60]!r}"] = said
    return told


# What is neither a key nor an instance; a function of other arguments fails where it is called, in its own words.
NO_ESTIMATORS: list[Any] = [None, True, 3, 1.5, "", "guesswork", b"activity", [], {}, int, fga.estimators.Upstream]
