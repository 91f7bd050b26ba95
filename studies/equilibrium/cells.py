"""Cells of `studies.equilibrium`: one network, before and after training, over nudges and tolerances; and trainings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.problems.equilibrium import Equilibrium, OneSided, RandomSign, Symmetric, random_weights
from fganalysis.training.datasets import Dataset
from studies.kit import kept_data
from studies.kit.devices import on
from theory import equilibrium as theory

Array = NDArray[np.float64]
SCHEMES = ("one-sided", "symmetric")
STATES = ("initial", "trained")
GUESSES = ("gradient", "one-sided", "random sign", "symmetric")
N_CLASSES = 10
TRAINING_TOLERANCE = 1e-4
TRAINING_BETA = 2.0**-4  # With the symmetric guess: its bias is then a percent or less at first.
N_GUESSES = 4  # The least from which there is a bias; all are the same.
MEASURED = ("relative_bias", "shrinkage", "cosine")


@dataclass(frozen=True)
class Network:
    """What a cell depends on; the settings of the study."""

    hidden: int
    seed: int
    width: int
    gain: float
    batch: int
    steps: int
    rate: float
    exponents: tuple[int, ...]
    """Binary logarithms of β, falling."""
    tolerances: tuple[float, ...]
    """Of the relaxation, falling."""
    random_guesses: int
    device: str = "cpu"


@dataclass(frozen=True)
class Training:
    """A training with a guess; at β = 0 with the gradient."""

    hidden: int
    seed: int
    width: int
    gain: float
    batch: int
    steps: int
    rate: float
    guess: str
    beta: float
    device: str = "cpu"


def cell(of: Network) -> xr.Dataset:
    """Biases over (state, scheme, relaxation, beta, layer), and what theory says of the least powers of β."""
    data = _data(of.device)
    weights = _initial(of, data)
    states = [weights, trained(of, weights, data, "symmetric", TRAINING_BETA)]
    parts = [_measured(of, state, data) for state in states]
    return xr.concat(parts, dim="state", data_vars="all").assign_coords(state=list(STATES))


def training(of: Training) -> xr.Dataset:
    """Test accuracy and training loss at the end; NaN where a relaxation does not end any more."""
    data = _data(of.device)
    try:
        weights = trained(of, _initial(of, data), data, of.guess, of.beta)
        reached = [_accuracy(weights, data), _problem(weights, data.train_inputs, data.train_targets, 1e-6).loss()]
    except ValueError:
        reached = [np.nan, np.nan]
    return xr.Dataset({"final_accuracy": reached[0], "final_loss": reached[1]})


def trained(
    of: Network | Training, weights: tuple[Tensor, ...], data: Dataset, guess: str, beta: float
) -> tuple[Tensor, ...]:
    """Weights after steps of gradient descent along a guess, on batches drawn with the seed."""
    generator, signs = torch.Generator().manual_seed(of.seed), np.random.default_rng(of.seed)
    for _ in range(of.steps):
        chosen = torch.randint(len(data.train_inputs), (of.batch,), generator=generator).to(of.device)
        problem = _problem(weights, data.train_inputs[chosen], data.train_targets[chosen], TRAINING_TOLERANCE)
        step = _step(problem, guess, beta, signs)
        weights = tuple(weight - of.rate * part for weight, part in zip(weights, step.values(), strict=True))
    return weights


def _step(problem: Equilibrium, guess: str, beta: float, signs: np.random.Generator) -> dict[str, Tensor]:
    if guess == "gradient":
        return problem.gradient()
    if guess == "random sign":
        return {name: drawn[0] for name, drawn in RandomSign(problem, beta)(1, signs).items()}
    return (OneSided if guess == "one-sided" else Symmetric)(problem, beta).guess()


def _data(device: str) -> Dataset:
    data = on(device, kept_data.load("digits"))
    return Dataset(data.train_inputs.double(), data.train_targets, data.test_inputs.double(), data.test_targets)


def _initial(of: Network | Training, data: Dataset) -> tuple[Tensor, ...]:
    sizes = [data.train_inputs.shape[1], *[of.width] * of.hidden, N_CLASSES]
    return tuple(weight.to(of.device) for weight in random_weights(sizes, of.gain, of.seed))


def _problem(weights: tuple[Tensor, ...], inputs: Tensor, classes: Tensor, tolerance: float) -> Equilibrium:
    targets = torch.nn.functional.one_hot(classes, N_CLASSES).double()
    return Equilibrium(weights, inputs, targets, tolerance, most_sweeps=20_000)


def _accuracy(weights: tuple[Tensor, ...], data: Dataset) -> float:
    free = _problem(weights, data.test_inputs, data.test_targets, 1e-6).free
    return float((free[-1].argmax(1) == data.test_targets).double().mean())


def _measured(of: Network, weights: tuple[Tensor, ...], data: Dataset) -> xr.Dataset:
    betas = 2.0 ** np.array(of.exponents, dtype=float)
    exact = _problem(weights, data.train_inputs[: of.batch], data.train_targets[: of.batch], of.tolerances[-1])
    gradient, layers = exact.gradient(), [*exact.names, "all"]
    of_point = np.full((len(MEASURED) + 1, len(SCHEMES), len(of.tolerances), len(betas), len(layers)), np.nan)
    noise = np.full((len(betas), len(layers)), np.nan)
    for t, tolerance in enumerate(of.tolerances):
        problem = replace(exact, tolerance=tolerance)
        _relax(problem, betas)
        for b, beta in enumerate(betas):
            draws: list[OneSided | Symmetric] = [OneSided(problem, float(beta)), Symmetric(problem, float(beta))]
            for s, draw in enumerate(draws):
                of_point[:, s, t, b] = _of_guess(draw, gradient)
            if tolerance == of.tolerances[-1]:
                noise[b] = _noise(RandomSign(problem, float(beta)), gradient, of.random_guesses)
    dims = ("scheme", "relaxation", "beta", "layer")
    names = [*MEASURED, "wrong_signs"]
    variables: dict[str, object] = {name: (dims, values) for name, values in zip(names, of_point, strict=True)}
    norms = np.array([float(part.square().sum()) for part in gradient.values()])
    variables |= {
        "random_sign_noise": (("beta", "layer"), noise),
        "leading": (("scheme", "layer"), _leading(exact)),
        "gradient_norm": ("layer", np.sqrt([*norms, norms.sum()])),
        "loss": exact.loss(),
        "accuracy": _accuracy(weights, data),
    }
    coords = {"scheme": list(SCHEMES), "relaxation": list(of.tolerances), "beta": betas, "layer": layers}
    return xr.Dataset(variables, coords)


def _relax(problem: Equilibrium, betas: Array) -> None:
    """All nudges together; where one of them does not end, one by one, so that its neighbours are kept."""
    nudges = [0.0, *betas, *-betas]
    try:
        problem.energy_gradients(nudges)
    except ValueError:
        for nudge in nudges:
            try:
                problem.energy_gradients([nudge])
            except ValueError:
                continue


def _of_guess(draw: OneSided | Symmetric, gradient: dict[str, Tensor]) -> Array:
    """`MEASURED` and the share of entries with the wrong sign, (quantity, layer), with layer "all"."""
    try:
        guess = draw.guess()
    except ValueError:
        return np.full((len(MEASURED) + 1, len(gradient) + 1), np.nan)
    measured = fga.measure(draw, gradient, n_guesses=N_GUESSES, block_size=1).sel(space="parameter")
    wrong = [(guess[name].sign() != exact.sign()).double().flatten() for name, exact in gradient.items()]
    shares = [float(part.mean()) for part in [*wrong, torch.cat(wrong)]]
    return np.stack([*(measured[name].values for name in MEASURED), np.array(shares)])


def _noise(draw: RandomSign, gradient: dict[str, Tensor], n_guesses: int) -> Array:
    """√tr Cov/‖G‖, (layer,), with layer "all"."""
    try:
        measured = fga.measure(draw, gradient, n_guesses=n_guesses).sel(space="parameter")
    except ValueError:
        return np.full(len(gradient) + 1, np.nan)
    found: Array = np.sqrt(measured["variance"].values) / measured["gradient_norm"].values
    return found


def _leading(problem: Equilibrium) -> Array:
    """‖e_2‖/‖e_1‖ and ‖e_3‖/‖e_1‖, (scheme, layer): the relative bias over β, and over β², for small β."""
    weights, states = ([part.cpu().numpy() for part in parts] for parts in (problem.weights, problem.free))
    coefficients = theory.coefficients(weights, states, problem.targets.cpu().numpy(), 3)
    squares = np.stack([(part**2).sum((1, 2)) for part in coefficients], axis=1)
    squares = np.concatenate([squares, squares.sum(1, keepdims=True)], axis=1)
    found: Array = np.sqrt(squares[1:] / squares[0])
    return found
