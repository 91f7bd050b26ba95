"""Slips of published code for zeroth-order training, as estimators, each beside the exact mean that it has instead.

On a network that is small enough for its mean to be measured. G is the gradient of a layer, g that of all weights, t =
V·g the slope along a direction V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import integrate, special
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, LowRankPerturbation, WeightPerturbation
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.results import schema

Array = NDArray[np.float64]
Means = Callable[[Sequence[Array]], list[Array]]

RANK = 2
SMOOTHING = 0.5
CLAMP = 1.0
POPULATION = 16
HELD_SEED = 1
SIZES, EXAMPLES = (6, 5, 4, 3), 8


@dataclass(frozen=True)
class Slip:
    """wrong: what is wrong, in words. mean: what the mean is, in words. guess: the estimator. exact: E Ĝ of G."""

    wrong: str
    mean: str
    guess: Estimator
    exact: Means


def snapshot_of(seed: int, device: str) -> Snapshot:
    """A tanh network 6-5-4-3 before training on eight random examples, in double precision."""
    network = fga.networks.mlp(list(SIZES), bias=False, seed=seed, activation=torch.nn.Tanh, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(EXAMPLES, SIZES[0], generator=generator, dtype=torch.float64)
    targets = torch.arange(EXAMPLES) % SIZES[-1]
    return fga.capture(network.to(device), torch.nn.functional.cross_entropy, inputs.to(device), targets.to(device))


def _along(snapshot: Snapshot, directions: Sequence[Tensor]) -> WeightEstimates:
    slopes = snapshot.weight_slopes(list(directions))
    return WeightEstimates(slopes.expand(-1, len(directions)), tuple(directions))


def without_root(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    directions = LowRankPerturbation(rank=RANK).directions(snapshot, n_guesses, generator)
    return _along(snapshot, [RANK**0.5 * direction.written() for direction in directions])


def times_rank(gradients: Sequence[Array]) -> list[Array]:
    return [RANK * gradient for gradient in gradients]


def one_seed(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    shapes = [layer.weight.shape for layer in snapshot.weights]
    longest = max(shape.numel() for shape in shapes)
    numbers = torch.randn(n_guesses, longest, generator=generator, dtype=snapshot.dtype, device=snapshot.device)
    return _along(snapshot, [numbers[:, : shape.numel()].reshape(n_guesses, *shape) for shape in shapes])


def layers_mixed(gradients: Sequence[Array]) -> list[Array]:
    total = np.zeros(max(gradient.size for gradient in gradients))
    for gradient in gradients:
        total[: gradient.size] += gradient.ravel()
    return [total[: gradient.size].reshape(gradient.shape) for gradient in gradients]


def uniform(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    directions = []
    for layer in snapshot.weights:
        shape = (n_guesses, *layer.weight.shape)
        directions.append(torch.rand(shape, generator=generator, dtype=snapshot.dtype, device=snapshot.device))
    return _along(snapshot, directions)


def mean_of_uniform(gradients: Sequence[Array]) -> list[Array]:
    total = sum(float(gradient.sum()) for gradient in gradients)
    return [gradient / 12 + total / 4 for gradient in gradients]


def same_noise_in_the_scale(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    right = WeightPerturbation()(snapshot, n_guesses, generator)
    scaled = [u / (1 - SMOOTHING + SMOOTHING * u.square()).sqrt() for u in right.directions]
    return replace(right, directions=tuple(scaled))


def by_the_scale(gradients: Sequence[Array]) -> list[Array]:
    def integrand(u: float) -> float:
        return u**2 / np.sqrt(1 - SMOOTHING + SMOOTHING * u**2) * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)

    factor = 2 * integrate.quad(integrand, 0, np.inf, epsabs=1e-13)[0]
    return [factor * gradient for gradient in gradients]


def clamped(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    right = WeightPerturbation()(snapshot, n_guesses, generator)
    limit = CLAMP * _norm(snapshot)
    return replace(right, coefficients=right.coefficients.clamp(-limit, limit))


def shrunk_by_clamping(gradients: Sequence[Array]) -> list[Array]:
    """E f(t) V = g E f'(t) for Gaussian V (Stein), and f' is 1 within the limits."""
    inside = 1 - 2 * float(special.ndtr(-CLAMP))
    return [inside * gradient for gradient in gradients]


def standardised(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    members = WeightPerturbation()(snapshot, n_guesses * POPULATION, generator)
    slopes = members.coefficients[:, 0].view(n_guesses, POPULATION)
    weights = (slopes - slopes.mean(1, keepdim=True)) / slopes.std(1, keepdim=True)
    means = [
        torch.einsum("gk,gkui->gui", weights, direction.unflatten(0, (n_guesses, POPULATION))) / POPULATION
        for direction in members.directions
    ]
    return WeightEstimates(means[0].new_ones(n_guesses, len(means)), tuple(means))


def of_unit_length(gradients: Sequence[Array]) -> list[Array]:
    """V_i = t_i g/‖g‖² and noise that is independent of t, so the mean is (n − 1)/n E s g/‖g‖², s that of a sample."""
    n = POPULATION
    deviation = np.sqrt(2 / (n - 1)) * np.exp(special.gammaln(n / 2) - special.gammaln((n - 1) / 2))
    norm = np.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
    return [(n - 1) / n * deviation * gradient / norm for gradient in gradients]


def _held(shape: Sequence[int], layer: int) -> Tensor:
    """W, (input, mode), of a layer."""
    generator = torch.Generator().manual_seed(HELD_SEED + layer)
    return torch.randn(shape[1], RANK, generator=generator, dtype=torch.float64)


def one_factor_held(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    directions = []
    for number, layer in enumerate(snapshot.weights):
        shape = (n_guesses, layer.weight.shape[0], RANK)
        left = torch.randn(shape, generator=generator, dtype=snapshot.dtype, device=snapshot.device)
        directions.append(left @ _held(layer.weight.shape, number).to(snapshot.like).T / RANK**0.5)
    return _along(snapshot, directions)


def in_the_held_factor(gradients: Sequence[Array]) -> list[Array]:
    found = []
    for number, gradient in enumerate(gradients):
        held = _held(gradient.shape, number).numpy()
        found.append(gradient @ held @ held.T / RANK)
    return found


def _norm(snapshot: Snapshot) -> float:
    return float(torch.cat([gradient.flatten() for gradient in snapshot.weight_gradients]).norm())


SLIPS = {
    "no root of the rank": Slip(f"directions U Wᵀ of rank {RANK} without 1/√r (LOZO)", "r G", without_root, times_rank),
    "one factor held": Slip(
        "W of U Wᵀ/√r is kept for many steps, so that U alone is noise (LOZO)",
        "G W Wᵀ/r",
        one_factor_held,
        in_the_held_factor,
    ),
    "one seed for all tensors": Slip(
        "the generator is seeded again for every tensor, so that all begin with the same numbers",
        "entry by entry the sum of all layers' gradients",
        one_seed,
        layers_mixed,
    ),
    "rand for randn": Slip(
        "entries are uniform on [0, 1) (MeZO-SVRG, which also divides by their norm)",
        "g/12 + (sum of g)/4",
        uniform,
        mean_of_uniform,
    ),
    "same noise in the preconditioner": Slip(
        "the guess is divided by the root of a scale that the same u has entered, "
        f"{1 - SMOOTHING:g} + {SMOOTHING:g} u² (HiZOO)",
        "E[u²/√scale] G",
        same_noise_in_the_scale,
        by_the_scale,
    ),
    "slope clamped": Slip(
        f"slopes are clamped at {CLAMP:g} of their standard deviation", "P(inside) G", clamped, shrunk_by_clamping
    ),
    "losses standardised": Slip(
        f"slopes of {POPULATION} members less their mean, over their standard deviation (EGGROLL)",
        "proportional to g/‖g‖: its length says nothing",
        standardised,
        of_unit_length,
    ),
}


def cell(name: str, seed: int, *, guesses: int, tolerance: float, max_guesses: int, device: str) -> xr.Dataset:
    """One slip: what is measured of it, its exact mean, and the verdicts of check_unbiased against G and that mean."""
    slip, snapshot = SLIPS[name], snapshot_of(seed, device)
    gradients = [gradient.double().cpu().numpy() for gradient in snapshot.weight_gradients]
    exact, flat = slip.exact(gradients), np.concatenate([gradient.ravel() for gradient in gradients])
    mean = np.concatenate([part.ravel() for part in exact])
    measured = fga.sample(snapshot, slip.guess, guesses, seed).sel(space="weight", layer=schema.ALL_LAYERS)
    shares = {
        "shrinkage_exact": float(mean @ flat / (flat @ flat)),
        "relative_bias_exact": float(np.linalg.norm(mean - flat) / np.linalg.norm(flat)),
        "directional_bias_exact": float(1 - (mean @ flat) ** 2 / ((mean @ mean) * (flat @ flat))),
    }
    numbers: dict[str, Any] = {
        quantity + suffix: float(measured[quantity + suffix])
        for quantity in ("shrinkage", "relative_bias")
        for suffix in ("", "_low", "_high")
    }
    limits = {"tolerance": tolerance, "max_guesses": max_guesses, "seed": seed}
    of_gradient = fga.check_unbiased(slip.guess, snapshot, **limits)  # type: ignore[arg-type]

    def draw(n_guesses: int, generator: torch.Generator) -> dict[str, Tensor]:
        written = slip.guess(snapshot, n_guesses, generator).dense(snapshot)[1]
        parts = written.split([gradient.size for gradient in gradients], dim=1)
        shaped = [part.unflatten(1, gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
        return dict(zip(snapshot.layers, shaped, strict=True))

    like = snapshot.device
    names = {layer: torch.from_numpy(part).to(like) for layer, part in zip(snapshot.layers, exact, strict=True)}
    of_mean = fga.check_unbiased(draw, fga.truth(names, generator="torch"), **limits)  # type: ignore[arg-type]
    numbers |= {
        "verdict": of_gradient.outcome,
        "verdict_guesses": of_gradient.n_guesses,
        "mean_verdict": of_mean.outcome,
        "mean_verdict_guesses": of_mean.n_guesses,
        "mean_bound": of_mean.findings[0].interval[1],
    }
    return xr.Dataset({name: ((), value) for name, value in (numbers | shares).items()})
