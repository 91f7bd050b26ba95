"""One cell of `studies.finite_difference`: one network; slope errors over ε, and what they are predicted from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import FiniteDifference
from fganalysis.estimators.noise import GAUSSIAN
from fganalysis.measuring.loss_along import LossAlong
from studies.finite_difference import loss_along
from studies.kit import kept_data
from studies.kit.devices import on
from theory import finite_difference

Array = NDArray[np.float64]
ACTIVATIONS: dict[str, type[torch.nn.Module]] = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
SCHEMES = ("one-sided", "central")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PRECISION_RATIO = 2.0**-29  # Unit roundoff of float64 over that of float32.


@dataclass(frozen=True)
class Network:
    """What a cell depends on; the settings of the study."""

    activation: str
    seed: int
    width: int
    batch: int
    draws: int
    exponents: tuple[int, ...]
    """Binary logarithms of ε, rising."""
    least_float32: int
    """The least of them at which float32 is tried."""
    rounding_exponent: int
    """That at which the rounding error of a loss is taken."""
    device: str = "cpu"


def cell(of: Network) -> xr.Dataset:
    """Root mean square slope errors over ‖G‖, (dtype, scheme, epsilon), and the predictions' ingredients."""
    double = _snapshot(of, torch.float64)
    gradient = [g.double() for g in double.weight_gradients]
    norm = float(sum(g.square().sum() for g in gradient)) ** 0.5
    generator = torch.Generator(of.device).manual_seed(int(np.random.SeedSequence((of.seed, 1)).generate_state(1)[0]))
    truncation, rounding, represented = _truncation(double, of, generator), *_rounding(double, of, generator)
    kinks = _kinks(double)
    epsilons = 2.0 ** np.array(of.exponents)
    shape = (len(DTYPES), len(SCHEMES), len(epsilons))
    errors, standard_errors, predicted = (np.full(shape, np.nan) for _ in range(3))
    for d, dtype in enumerate(DTYPES.values()):
        snapshot = _snapshot(of, dtype)
        own_rounding = rounding * (PRECISION_RATIO if dtype == torch.float64 else 1.0)
        for s, central in enumerate((False, True)):
            smooth = finite_difference.slope_error(epsilons, truncation[s], own_rounding, central=central)
            crossed = finite_difference.kink_error(epsilons, *kinks, central=central)
            predicted[d, s] = np.hypot(smooth, crossed) / norm
            for e, exponent in enumerate(of.exponents):
                if dtype == torch.float32 and exponent < of.least_float32:
                    continue
                found = _slope_errors(FiniteDifference(2.0**exponent, central), snapshot, gradient, of.draws, generator)
                if found is not None:
                    squares = (found / norm) ** 2
                    errors[d, s, e] = np.sqrt(squares.mean())
                    standard_errors[d, s, e] = squares.std(ddof=1) / np.sqrt(len(squares)) / (2 * errors[d, s, e])
    dims = ("dtype", "scheme", "epsilon")
    return xr.Dataset(
        {
            "slope_error": (dims, errors),
            "slope_error_se": (dims, standard_errors),
            "slope_error_predicted": (dims, predicted),
            "truncation": ("scheme", np.array(truncation) / norm),
            "rounding": rounding / norm,
            "representation": represented / norm,
            "nearest_kink": (kinks[0] / kinks[1]).min(initial=np.inf),
            "gradient_norm": norm,
            "loss": float(double.loss),
        },
        coords={"dtype": list(DTYPES), "scheme": list(SCHEMES), "epsilon": epsilons},
    )


def _snapshot(of: Network, dtype: torch.dtype) -> Snapshot:
    """The same weights and batch in any precision: both come in float32."""
    data = on(of.device, kept_data.load("mnist1d"))
    network = fga.networks.mlp(
        [40, of.width, of.width, of.width, 10],
        bias=False,
        seed=of.seed,
        activation=ACTIVATIONS[of.activation],
        dtype=dtype,
    ).to(of.device)
    inputs, targets = data.batch(of.batch)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs.to(dtype), targets)


def _directions(snapshot: Snapshot, draws: int, generator: torch.Generator) -> list[Tensor]:
    return [GAUSSIAN.draw((draws, *tap.weight.shape), generator, tap.weight) for tap in snapshot.taps]


def _truncation(snapshot: Snapshot, of: Network, generator: torch.Generator) -> tuple[float, float]:
    """½√E (zᵀHz)² and (1/6)√E (T zzz)², by exact derivatives along directions of their own."""
    loss = LossAlong(snapshot, torch.float64)
    along = loss.derivatives(loss.directions(tuple(_directions(snapshot, of.draws, generator))))
    second, third = along[:, 1:].square().mean(0).sqrt()
    return float(second) / 2, float(third) / 6


def _rounding(double: Snapshot, of: Network, generator: torch.Generator) -> tuple[float, float]:
    """Standard deviation of a float32 loss's rounding error, against float64 at the same weights; and the least it can
    be, that of rounding the loss itself to float32."""
    single = _snapshot(of, torch.float32)
    directions, step = _directions(single, of.draws, generator), 2.0**of.rounding_exponent
    exact = loss_along.losses(double, [direction.double() for direction in directions], step)
    errors = loss_along.losses(single, directions, step).double() - exact
    spacing = np.spacing(exact.cpu().numpy().astype(np.float32)).astype(np.float64)
    return float(errors.std()), float(np.sqrt((spacing**2).mean() / 12))


def _kinks(snapshot: Snapshot) -> tuple[Array, Array, Array]:
    """Distances, spreads and jumps of every ReLU unit and example for `kink_error`, (kink,); none without ReLU."""
    if not any(isinstance(module, torch.nn.ReLU) for module in snapshot.network.modules()):
        return np.empty(0), np.empty(0), np.empty(0)
    distances, spreads, jumps = [], [], []
    covariance = passed = torch.zeros(snapshot.n_examples, 1, 1, dtype=torch.float64, device=snapshot.device)
    for index, (tap, jacobian) in enumerate(zip(snapshot.taps, snapshot.upstream, strict=False)):
        own = tap.inputs.square().sum(1)[:, None, None] * torch.eye(
            tap.units, dtype=torch.float64, device=snapshot.device
        )
        # What the weights before this tap change comes through W diag(φ').
        covariance = own + passed @ covariance @ passed.mT if index else own
        distances.append(tap.outputs.abs().flatten())
        spreads.append(covariance.diagonal(dim1=1, dim2=2).sqrt().flatten())
        jumps.append((snapshot.gradients[index + 1] @ jacobian.weight).flatten())
        passed = jacobian.weight * jacobian.derivative[:, None, :]
    found = [torch.cat(parts).cpu().numpy() for parts in (distances, spreads, jumps)]
    return found[0], found[1], found[2]


def _slope_errors(
    estimator: FiniteDifference, snapshot: Snapshot, gradient: list[Tensor], draws: int, generator: torch.Generator
) -> Array | None:
    """Slope less z·G of every guess, (guess,); None where the estimator refuses an ε that underflows."""
    try:
        with torch.no_grad():
            guesses = estimator(snapshot, draws, generator)
    except ValueError:
        return None
    exact = sum(
        direction.double().flatten(1) @ g.flatten() for direction, g in zip(guesses.directions, gradient, strict=True)
    )
    errors: Array = (guesses.coefficients[:, 0].double() - exact).cpu().numpy()
    return errors
