"""What `studies.calibration` samples: estimators, some made to be hard, their networks and their closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    Minibatch,
    MultiTangent,
    OrthogonalUpstream,
    Subsampled,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import Rademacher
from fganalysis.results import schema

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Laplace:
    """Noise with exponential tails: fourth moment 6, and a guess has products of four entries in its squared norm."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        halves = torch.empty((2, *shape), dtype=like.dtype, device=like.device).exponential_(generator=generator)
        return (halves[0] - halves[1]) / 2**0.5

    def fourth(self, n: int) -> float:
        return 6.0

    def pair(self, n: int) -> float:
        return 1.0


@dataclass(frozen=True)
class RareEvents:
    """The gradient over p with probability p, else nothing: unbiased, with a kurtosis of about 1/p."""

    probability: float = 0.1

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        gradients = snapshot.weight_gradients
        drawn = torch.rand(n_guesses, generator=generator, dtype=gradients[0].dtype, device=generator.device)
        hits = drawn < self.probability
        coefficients = (hits.to(gradients[0].dtype) / self.probability).unsqueeze(1).expand(-1, len(gradients))
        return WeightEstimates(coefficients, tuple(g.expand(n_guesses, *g.shape) for g in gradients))


@dataclass(frozen=True)
class Shrunk:
    """Weight perturbation times 1 − ``shrinkage``: a bias of that size, relative to the gradient."""

    shrinkage: float

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        guesses = WeightPerturbation()(snapshot, n_guesses, generator)
        return replace(guesses, coefficients=(1 - self.shrinkage) * guesses.coefficients)

    def factor(self) -> tuple[float, float, float]:
        """Of the factor on weight perturbation: mean, mean square, probability of being positive."""
        return 1 - self.shrinkage, (1 - self.shrinkage) ** 2, 1.0


@dataclass(frozen=True)
class TimesStudent:
    """Weight perturbation times 1 + t, t of Student's law with three degrees of freedom: ‖ĝ‖² has no variance."""

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        like = snapshot.weight_gradients[0]
        normal = torch.randn((4, n_guesses), generator=generator, dtype=like.dtype, device=like.device)
        return _times(1 + normal[0] / normal[1:].square().mean(0).sqrt(), snapshot, n_guesses, generator)

    def factor(self) -> tuple[float, float, float]:
        return 1.0, 4.0, float(stats.t.cdf(1, 3))


@dataclass(frozen=True)
class TimesLogNormal:
    """Weight perturbation times a log-normal number of mean 1 and σ = 1: all moments, but not in 10⁴ guesses."""

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        like = snapshot.weight_gradients[0]
        normal = torch.randn(n_guesses, generator=generator, dtype=like.dtype, device=like.device)
        return _times(torch.exp(normal - 0.5), snapshot, n_guesses, generator)

    def factor(self) -> tuple[float, float, float]:
        return 1.0, float(np.e), 1.0


def _times(factors: Tensor, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    guesses = WeightPerturbation()(snapshot, n_guesses, generator)
    return replace(guesses, coefficients=factors.unsqueeze(1) * guesses.coefficients)


ESTIMATORS: dict[str, Estimator] = {
    "activity": ActivityPerturbation(),
    "activity, signs, separate": ActivityPerturbation(noise=Rademacher(), layers="separate"),
    "activity, shared, batch slope": ActivityPerturbation(shared=True, slope="batch"),
    "activity, Laplace": ActivityPerturbation(noise=Laplace()),
    "activity, one output": ActivityPerturbation(),
    "upstream": Upstream(),
    "orthogonal, k = 2": OrthogonalUpstream(k=2),
    "weight": WeightPerturbation(),
    "mean of 4 tangents": MultiTangent(k=4),
    "rare events": RareEvents(),
    "activity, on half the batch": Subsampled(ActivityPerturbation(), 2),  # The two parts of its variance.
}
MANY_WEIGHTS = "weight, 10⁵ weights"  # Drawn from its law: see `calibration_cells.drawn_of_many`.
DIMENSIONS = 10**5
# Settings in which intervals fell short, or directions were no numbers between 0 and 1, until that was seen.
HARD: dict[str, Estimator] = {
    "weight, times .005": Shrunk(0.995),
    "projection on 3 tangents": MultiTangent(k=3, combine="orthogonal"),
    "minibatch, 1 of 2": Minibatch(1),
    "minibatch, 2 of 4": Minibatch(2),
    "activity, signs, two units": ActivityPerturbation(noise=Rademacher(), layers="separate"),
    MANY_WEIGHTS: WeightPerturbation(),
    "weight, times 1 + t": TimesStudent(),
    "weight, times a log-normal": TimesLogNormal(),
}
TAILS = ("weight, times 1 + t", "weight, times a log-normal")  # Whose squares have no variance, or none yet.


def has_steps(name: str) -> bool:
    """Whether curvatures along its guesses are counted: where guesses are written out, and drawn many at a time."""
    return name != MANY_WEIGHTS and not isinstance((ESTIMATORS | HARD)[name], Subsampled)


HEAVY = ("activity, shared, batch slope", "activity, Laplace", "rare events")
UNBIASED: dict[str, Estimator] = {"activity": ActivityPerturbation(), "rare events": RareEvents(0.03)}


@dataclass(frozen=True)
class Network:
    """Sizes of layers, examples, activation."""

    sizes: tuple[int, ...] = (4, 6, 6, 3)
    n_examples: int = 4
    activation: type[torch.nn.Module] = torch.nn.ReLU


NETWORKS = {
    "activity, one output": Network((3, 4, 1), 1, torch.nn.Tanh),
    "one output": Network((3, 4, 1), 1, torch.nn.Tanh),
    "minibatch, 1 of 2": Network(n_examples=2),
    "activity, signs, two units": Network((3, 2, 1), 1, torch.nn.Tanh),
}


def network(name: str, device: str = "cpu") -> Snapshot:
    """4-6-6-3 with ReLU and 4 examples where no other is named for it. Squared error, no biases, double precision."""
    return captured(NETWORKS.get(name, Network()), device)


def captured(chosen: Network, device: str) -> Snapshot:
    sizes = list(chosen.sizes)
    module = fga.networks.mlp(sizes, bias=False, seed=1, activation=chosen.activation, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(chosen.n_examples, sizes[0], generator=generator, dtype=torch.float64)
    targets = torch.randn(chosen.n_examples, sizes[-1], generator=generator, dtype=torch.float64)
    return fga.capture(module.to(device), torch.nn.functional.mse_loss, inputs.to(device), targets.to(device))


def closed_forms(snapshot: Snapshot, estimator: Estimator) -> dict[str, Array]:
    """Truths over (space, layer), NaN where no closed form is known."""
    squares = squared_gradients(snapshot)
    kept = np.array([[np.nan], [1.0]]) * np.ones_like(squares)
    if isinstance(estimator, (Shrunk, TimesStudent, TimesLogNormal)):
        plain = fga.predict(snapshot, WeightPerturbation())
        variance, cosine, descent = (plain[name].values for name in ("variance", "cosine", "descent_probability"))
        return _of_a_factor(squares, variance, cosine, descent, *estimator.factor())
    if isinstance(estimator, RareEvents):
        noise = 1 / estimator.probability - 1
        zero = {quantity: 0 * kept for quantity in ("bias", "squared_bias", "relative_bias", "directional_bias")}
        rest = {"shrinkage": kept, "variance": noise * squares * kept, "mse": noise * squares * kept}
        share = estimator.probability * kept
        return zero | rest | {"efficiency": share, "best_scale": share, "cosine": share, "descent_probability": share}
    predicted = fga.predict(snapshot, estimator)
    truths = {}
    for quantity, variable in schema.QUANTITIES.items():
        values = predicted[quantity].values
        truths[quantity] = values if len(variable.dims) == 2 else np.stack([values, np.full_like(values, np.nan)])
    for quantity in ("bias", "squared_bias", "relative_bias", "directional_bias", "wang2025_bias"):
        # Closed forms of what is zero leave their rounding, of its root where they are roots.
        tiny = 1e-6 if quantity in ("bias", "relative_bias", "wang2025_bias") else 1e-12
        truths[quantity] = np.where(np.abs(truths[quantity]) < tiny, 0.0, truths[quantity])
    return truths


def of_many_weights() -> dict[str, Array]:
    """Of `MANY_WEIGHTS`, the gradient of unit length, (space, layer): all layers are one."""
    one = np.ones((len(schema.SPACES), 1))
    return _of_a_factor(one, (DIMENSIONS + 1) * one, np.nan * one, one, 1.0, 1.0, 1.0)


def _of_a_factor(
    squares: Array, variance: Array, cosine: Array, descent: Array, mean: float, square: float, positive: float
) -> dict[str, Array]:
    """Of weight perturbation, unbiased, times a random factor that does not depend on it."""
    weight_only = np.array([[np.nan], [1.0]]) * np.ones_like(squares)
    second = square * (variance + squares)
    error = abs(1 - mean) * np.sqrt(squares) * weight_only
    sides = 2 * positive - 1
    truths = {
        "bias": error,
        "squared_bias": error**2,
        "relative_bias": error / np.sqrt(squares),
        "shrinkage": mean * weight_only,
        "directional_bias": 0 * weight_only,
        "variance": second - mean**2 * squares,
        "mse": second + (1 - 2 * mean) * squares,
        "cosine": sides * cosine,
        "efficiency": mean**2 * squares / second,
        "best_scale": mean * squares / second,
        "descent_probability": (1 - positive + sides * descent) * weight_only,
    }
    return truths | {name: np.full_like(squares, np.nan) for name in ("wang2025_bias", "wang2025_variance")}
