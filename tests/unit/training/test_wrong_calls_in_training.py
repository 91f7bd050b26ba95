"""Wrong values for every argument of what trains, loads and makes networks: right, or refused in a sentence of ours."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from fganalysis.training.checkpoints import load_checkpoint, load_estimator_state
from fganalysis.training.datasets import Dataset, cifar, idx_images, load, read_idx
from fganalysis.training.estimated_gradients import fill_gradients
from fganalysis.training.evaluation import evaluate
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
OPTIMIZERS = [
    lambda parameters: torch.optim.SGD(NETWORK.parameters(), lr=0.1),
    lambda parameters: torch.optim.SGD([]),
    lambda parameters: torch.optim.SGD(parameters, lr=-1),
    lambda parameters: torch.optim.SGD,
    lambda parameters: torch.optim.SGD([*parameters][:1], lr=0.1),
    torch.optim.LBFGS,
    torch.optim.SparseAdam,
]
SCHEDULES = [
    lambda optimizer: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(NETWORK.parameters()), 2),
    lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, "2"),
    torch.optim.lr_scheduler.StepLR,
]
TRAIN = {
    "network": NETWORKS,
    "data": [
        (X, Y, X, Y),
        X.numpy(),
        Dataset,
        Dataset(X, Y, X[:0], Y[:0]),
        Dataset(X, Y, X, Y + 1),
        Dataset(X, Y + 3, X, Y),
        Dataset(X, Y - 1, X, Y),
        Dataset(X, Y.double(), X, Y.double()),
        Dataset(X[:, :5], Y, X[:, :5], Y),
        Dataset(X.double(), Y, X.double(), Y),
        Dataset(X.long(), Y, X.long(), Y),
        Dataset(X[None].repeat(16, 1, 1), Y, X[None], Y[:1]),
    ],
    "gradient": ["guesswork", fga.estimators.ActivityPerturbation, *BAD_ESTIMATORS.values()],
    "epochs": [],
    "checkpoints": [[99], [-1], "0", [True], np.arange(2)],
    "out": [],
    "batch_size": [17, 16],
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss_fn": LOSSES,
    "n_guesses": [],
    "autodiff": ["x", "forward"],
    "seed": [],
    "log_every": [],
    "continue_from": [],
    "progress": [],
}
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


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("gradient", ["backpropagation", "activity"])
@pytest.mark.parametrize("name", TRAIN)
def test_train(name: str, gradient: str, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"network": NETWORK, "data": DATA, "gradient": gradient, "epochs": 1}
    right |= {"checkpoints": [0]} if name == "out" else {"out": "here"} if name == "checkpoints" else {}
    anything = NO_ESTIMATORS if name == "gradient" else ANYTHING
    assert walk(fga.train, right, name, [*anything, *TRAIN[name]]) == {}


@pytest.mark.parametrize(
    "name", ["make_network", "data", "gradient", "seeds", "out", "epochs", "network", "unheard_of"]
)
def test_train_seeds(name: str) -> None:
    right = {"make_network": lambda seed: NETWORK, "data": DATA, "seeds": [0, 1], "epochs": 1}
    networks = [*NETWORKS, *(partial(lambda network, seed: network, network) for network in NETWORKS)]
    values = [
        *(NO_ESTIMATORS if name == "gradient" else ANYTHING),
        *(networks if name == "make_network" else []),
        np.arange(2),
        [0, 1],
        [2**70],
        "01",
    ]
    assert walk(fga.train_seeds, right, name, values) == {}


@pytest.mark.parametrize("name", ["network", "loss_fn", "inputs", "targets", "estimator", "generator", "n_guesses"])
@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_estimate_gradient(name: str, autodiff: str) -> None:
    right = {"network": NETWORK, "loss_fn": F.cross_entropy, "inputs": X, "targets": Y, "estimator": "activity"}
    right |= {"generator": torch.Generator(), "autodiff": autodiff}
    more = {"network": NETWORKS, "loss_fn": LOSSES, "estimator": [*BAD_ESTIMATORS.values()]}
    anything = NO_ESTIMATORS if name == "estimator" else ANYTHING
    assert walk(fga.estimate_gradient, right, name, [*anything, *more.get(name, [])]) == {}


def test_estimate_gradient_by_other_ways() -> None:
    right = {"network": NETWORK, "loss_fn": F.cross_entropy, "inputs": X, "targets": Y, "estimator": "activity"}
    assert walk(fga.estimate_gradient, right | {"generator": torch.Generator()}, "autodiff", ANYTHING) == {}


@pytest.mark.parametrize("kind", BAD_ESTIMATORS)
def test_guesses_that_do_not_fit_leave_no_gradient(kind: str) -> None:
    network = mlp([6, 5, 3], seed=0)
    with pytest.raises(ValueError, match=r"guess|the estimator must return"):
        fga.estimate_gradient(network, F.cross_entropy, X, Y, BAD_ESTIMATORS[kind], torch.Generator())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["snapshot", "estimator", "n_guesses", "generator"])
def test_fill_gradients(name: str) -> None:
    right = {"snapshot": SNAPSHOT, "estimator": "activity", "n_guesses": 2, "generator": torch.Generator()}
    values = [*NO_ESTIMATORS, *BAD_ESTIMATORS.values()] if name == "estimator" else ANYTHING
    assert walk(fill_gradients, right, name, values) == {}


@pytest.mark.parametrize("name", ["network", "data", "loss_fn"])
def test_evaluate(name: str) -> None:
    right = {"network": NETWORK, "data": DATA, "loss_fn": F.cross_entropy}
    more = {"network": NETWORKS, "data": TRAIN["data"], "loss_fn": LOSSES}
    assert walk(evaluate, right, name, [*ANYTHING, *more[name]]) == {}


@pytest.mark.parametrize("name", ["path", "network", "optimizer", "scheduler"])
def test_load_checkpoint(name: str, tmp_path: Path) -> None:
    right = {"path": fga.train(NETWORK, DATA, epochs=1, checkpoints=[0], out=tmp_path).checkpoints[0]}
    right |= {"network": mlp([6, 5, 3])}
    assert walk(load_checkpoint, right, name, [*ANYTHING, *NETWORKS]) == {}
    assert walk(load_estimator_state, {}, "path", ANYTHING) == {}


@pytest.mark.parametrize("name", ["sizes", "bias", "seed", "activation", "dtype"])
def test_mlp(name: str) -> None:
    more = [[3, 2], (3, 2, 1), np.array([3, 2]), torch.tensor([3, 2]), ["a"], [3, 2.5], torch.float16, torch.int8]
    assert walk(mlp, {"sizes": [3, 2, 1]}, name, [*ANYTHING, *more]) == {}


@pytest.mark.parametrize("name", ["train_inputs", "train_targets", "test_inputs", "test_targets"])
def test_dataset(name: str) -> None:
    right = {"train_inputs": X, "train_targets": Y, "test_inputs": X, "test_targets": Y}
    assert walk(Dataset, right, name, ANYTHING) == {}


def test_batch_and_load() -> None:
    assert walk(DATA.batch, {}, "size", ANYTHING) == {}
    assert walk(DATA.batch, {"size": 3}, "seed", ANYTHING) == {}
    assert walk(load, {}, "name", ANYTHING) == {}
    assert walk(load, {"name": "digits"}, "seed", ANYTHING) == {}


def test_files_of_datasets() -> None:
    contents = [*ANYTHING, b"", bytes(16), bytes([0, 0, 8, 255]), bytes([0, 0, 8, 1, 255, 255, 255, 255])]
    assert walk(read_idx, {}, "content", contents) == {}
    files = [*ANYTHING, {"train-images-idx3-ubyte": b""}, {"test_batch.bin": b"123"}]
    assert walk(idx_images, {}, "files", files) == {}
    assert walk(cifar, {}, "files", files) == {}
