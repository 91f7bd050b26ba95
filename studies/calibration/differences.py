"""How often the intervals of `fganalysis.difference_step` hold the truth: best ε, slope errors and what they come from.

A law with known moments is made of a network: `POOLED` directions, along which derivatives and losses are computed once
in both precisions. A sample draws directions from this pool with replacement, so that the pool's means are the exact
truth, and no sample costs a pass. Everything else is that of `fganalysis.difference_step`. The rounding error, and with
kinks the truncation error, depend on the ε at which they are measured. The truth is that of the sample's ε.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.perturbation.finite_difference import FiniteDifference
from fganalysis.measuring.difference_errors import (
    Directions,
    OfScheme,
    TwoPrecisions,
    measured_near_best,
    truncation_factor,
)
from fganalysis.measuring.difference_step import PRECISIONS, SCHEMES, of_scheme
from fganalysis.measuring.loss_along import LossAlong
from fganalysis.results import schema
from fganalysis.statistics import intervals
from fganalysis.statistics.intervals import Estimate
from studies.calibration.counting import of_all_layers
from studies.calibration.estimators import Network, captured

Array = NDArray[np.float64]
POOLED = 4096
ACTIVATIONS: dict[str, type[torch.nn.Module]] = {"tanh": torch.nn.Tanh, "ReLU": torch.nn.ReLU}
CASES = {
    "tanh, float32": ("tanh", "float32"),
    "tanh, bfloat16": ("tanh", "bfloat16"),
    "ReLU, bfloat16": ("ReLU", "bfloat16"),
}
QUANTITIES = (
    *("second_derivative", "third_derivative", "mean_error", "loss_rounding", "best_epsilon", "least_slope_error"),
    *("slope_error_there", "truncation_ratio"),
)
OF_DIRECTIONS = QUANTITIES[:3]
NAMES = (*OF_DIRECTIONS, *(f"{name}, {scheme}" for name in QUANTITIES[3:] for scheme in SCHEMES))
BOUNDS = ("", schema.LOW, schema.HIGH, schema.WIDE)


@dataclass(eq=False)
class Pool:
    """Directions of a network, with derivatives (direction, derivative), and differences of losses by scheme and ε."""

    pair: TwoPrecisions
    directions: tuple[Tensor, ...]
    derivatives: Array
    known: dict[tuple[float, bool], tuple[Array, Array]] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot, precision: str, seed: int) -> Pool:
        estimator = FiniteDifference()
        generator = torch.Generator(snapshot.device).manual_seed(seed)
        directions = estimator.draw(snapshot, POOLED, generator)
        exact = LossAlong(snapshot, torch.float64)
        derivatives = exact.derivatives(exact.directions(directions)).cpu().numpy()
        return cls(TwoPrecisions(snapshot, PRECISIONS[precision]), directions, derivatives)

    def differences(self, step: float, central: bool) -> tuple[Array, Array]:
        """As those of `TwoPrecisions`, of all directions."""
        if (step, central) not in self.known:
            along = self.pair.rounded.directions(self.directions)
            exactly = {name: part.double() for name, part in along.items()}
            back = -step if central else 0.0
            found = []
            with torch.no_grad():
                for of, z in ((self.pair.rounded, along), (self.pair.exact, exactly)):
                    ahead, behind = (vmap(of.loss)(of.moved(z, length)).double() for length in (step, back))
                    found.append((ahead - behind).cpu().numpy())
            self.known[step, central] = (found[0], found[1])
        return self.known[step, central]


@dataclass(frozen=True, eq=False)
class Sampled:
    """Some directions of a pool, in place of a `TwoPrecisions`."""

    pool: Pool
    chosen: NDArray[np.int64]

    @property
    def dtype(self) -> torch.dtype:
        return self.pool.pair.dtype

    @property
    def loss(self) -> float:
        return self.pool.pair.loss

    def differences(self, directions: Directions, count: int, step: float, central: bool) -> tuple[Array, Array]:
        rounded, exact = self.pool.differences(step, central)
        some = self.chosen[:count]
        return rounded[some], exact[some]


@dataclass(frozen=True)
class Counted:
    """In place of `Directions`: how many there are."""

    n_guesses: int


def counted_differences(name: str, repeats: int, n_guesses: int, seed: int, device: str) -> xr.Dataset:
    """How often each interval held the truth, over (quantity, space, layer); schemes are in the names."""
    activation, precision = CASES[name]
    snapshot = captured(Network(activation=ACTIVATIONS[activation]), device)
    pool = Pool.of(snapshot, precision, seed)
    norm = float(sum(part.double().square().sum() for part in snapshot.weight_gradients)) ** 0.5
    rng = np.random.default_rng(seed)
    found: dict[str, list[list[float]]] = {}
    truths: dict[str, list[float]] = {}
    for _ in range(repeats):
        chosen = rng.integers(POOLED, size=n_guesses)
        for quantity, (bounds, truth) in _of_sample(pool, chosen, norm).items():
            found.setdefault(quantity, []).append(bounds)
            truths.setdefault(quantity, []).append(truth)
    estimates = {}
    for quantity, rows in found.items():
        value, low, high, wide = np.array(rows).T
        estimates[quantity] = Estimate(value, value, low, high, wide == 1)
    return of_all_layers(estimates, {quantity: np.array(values) for quantity, values in truths.items()})


def _of_sample(pool: Pool, chosen: NDArray[np.int64], norm: float) -> dict[str, tuple[list[float], float]]:
    """Value, bounds and flag of every quantity, and the truth."""
    along, rows = pool.derivatives[chosen], {}
    tilt = intervals.of_sample(along[:, 2] * along[:, 0]).scaled(np.asarray(1 / (6 * norm**2)))
    truth = float((pool.derivatives[:, 2] * pool.derivatives[:, 0]).mean()) / (6 * norm**2)
    flags = float(np.asarray(tilt.wide))
    rows["mean_error"] = ([float(tilt.value), float(tilt.low), float(tilt.high), flags], truth)
    for scheme, central in SCHEMES.items():
        order = 2 if central else 1
        square = intervals.of_sample(along[:, order] ** 2)
        pair = cast(TwoPrecisions, Sampled(pool, chosen))
        directions = cast(Directions, Counted(len(chosen)))
        measured = measured_near_best(pair, directions, along, central)
        exact_square = _known(pool.derivatives[:, order] ** 2)
        variables = of_scheme(measured, square, norm, np.ones(1))
        exact = of_scheme(_exact(pool, measured), exact_square, norm, np.ones(1))
        for quantity in QUANTITIES[3:]:
            bounds = [float(variables[quantity + part][1]) for part in BOUNDS]
            rows[f"{quantity}, {scheme}"] = (bounds, float(exact[quantity][1]))
        root = "third_derivative" if central else "second_derivative"
        bounds = [max(float(part), 0.0) ** 0.5 for part in (square.value, square.low, square.high)]
        rows[root] = ([*bounds, float(np.asarray(square.wide))], float(exact_square.value) ** 0.5)
    return rows


def _known(values: Array) -> Estimate:
    mean = values.mean()
    return Estimate(mean, np.zeros(()), mean, mean)


def _exact(pool: Pool, measured: OfScheme) -> OfScheme:
    """What would be measured of the whole pool, at the same ε."""
    rounded, exact = pool.differences(measured.epsilon, measured.central)
    length, slopes = (2 if measured.central else 1) * measured.epsilon, pool.derivatives[:, 0]
    parts = ((rounded - exact) ** 2 / 2, (rounded / length - slopes) ** 2, (exact / length - slopes) ** 2)
    rounding, error, truncation = (_known(part) for part in parts)
    factor = truncation_factor(measured.epsilon, measured.central)
    ratio = _known(parts[-1] / (factor**2 * (pool.derivatives[:, 2 if measured.central else 1] ** 2).mean()))
    return replace(
        measured,
        squared_rounding=rounding,
        squared_error=error,
        squared_truncation=truncation,
        truncation_ratio=replace(ratio, value=np.sqrt(ratio.value)),
    )
