"""Which ε makes a finite difference best, in single and in double precision, one-sided and central?

The slope (L(θ+εz) − L(θ))/ε or (L(θ+εz) − L(θ−εz))/2ε of `FiniteDifference` against the exact z·G, for MLPs with tanh
and with ReLU: root mean square error over z, relative to ‖G‖ = √E (z·G)², over ε. Predicted by theory.finite_difference
as truncation (½√E (zᵀHz)² ε one-sided, (1/6)√E (T zzz)² ε² central), rounding (√2 r/ε and r/(√2 ε)) and, for ReLU, the
kinks that the step crosses (√ε at small ε). What goes into it is measured elsewhere: zᵀHz and T zzz by exact forward
mode along other directions, r from losses of the same weights in two precisions, kinks from the units' pre-activations.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import optimize

from fganalysis.arguments import check_names
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.finite_difference import figures
from studies.finite_difference import page as finite_difference_page
from studies.finite_difference.cells import ACTIVATIONS, Network, cell
from studies.kit import command_line, pages
from studies.kit.digests import digests
from studies.kit.long_names import described

Array = NDArray[np.float64]
WINDOW = 5  # Powers of two on either side of the least error that the fit takes in.
FITTED = {
    "best_epsilon": ("step of the least slope error", "1"),
    "least_error": ("least slope error over the norm of the gradient", "1"),
}
QUANTITIES = {
    "slope_error": ("root mean square error of the slope over the norm of the gradient", "1"),
    "truncation": ("coefficient of epsilon (one-sided) or epsilon^2 (central) in the slope error", "1"),
    "rounding": ("standard deviation of a float32 loss's rounding error over the norm of the gradient", "1"),
    "representation": ("the same from rounding the loss to float32 alone", "1"),
    "nearest_kink": ("step at which the nearest kink is a standard deviation of z away", "1"),
    "gradient_norm": ("norm of the gradient", "loss per unit of weight"),
    "loss": ("mean loss", "loss"),
} | FITTED


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """The networks, the steps and how many directions."""

    activations: tuple[str, ...] = tuple(ACTIVATIONS)
    """tanh, for a smooth loss, and relu, for one with kinks."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of weights and directions; intervals are over them."""
    width: int = 64
    """Width of the three hidden layers; 40 inputs, 10 outputs, no biases."""
    batch: int = 64
    """Examples of MNIST-1D that the loss is the mean over."""
    draws: int = 128
    """Directions for each ε."""
    smallest: int = -36
    """Binary logarithm of the smallest ε."""
    smallest_float32: int = -25
    """The same for float32."""
    largest: int = 0
    """Binary logarithm of the largest ε."""
    rounding_at: int = -12
    """Binary logarithm of the step at which the rounding error of a float32 loss is taken."""
    out: Path = Path("results/finite_difference")
    """Where results go, a file for each network; what is finished there is not computed again."""
    page: Path | None = None
    """Where finite_difference.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        exponents = ("smallest", "smallest_float32", "largest", "rounding_at")
        command_line.check(self, least=dict.fromkeys(exponents, -100))
        check_names("activations", self.activations, ACTIVATIONS)
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be at least 2, as intervals are over them, got {len(self.seeds)}")
        if self.largest - max(self.smallest, self.smallest_float32) < 2 * WINDOW:
            raise ValueError(f"largest must be at least {2 * WINDOW} above the smallest, got {self.largest}")


def main(settings: Settings) -> xr.Dataset:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = []
    for activation in settings.activations:
        row = [results.dataset(_name(activation, seed)) for seed in settings.seeds]
        rows.append(xr.concat(row, dim="seed", data_vars="all", combine_attrs="drop"))
    dataset = xr.concat(rows, dim="activation", data_vars="all")
    dataset = dataset.assign_coords(activation=list(settings.activations), seed=list(settings.seeds))
    dataset = described(_with_best(dataset), QUANTITIES)
    dataset.attrs = {
        name: getattr(settings, name) for name in ("width", "batch", "draws", "rounding_at", "smallest_float32")
    }
    drawn = {"error": figures.figure(dataset)}
    pages.publish("finite_difference", dataset, finite_difference_page.page(dataset), drawn, settings)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every network."""
    data, found = digests("mnist1d"), []
    for activation, seed in itertools.product(settings.activations, settings.seeds):
        of = Network(
            activation=activation,
            seed=seed,
            width=settings.width,
            batch=settings.batch,
            draws=settings.draws,
            exponents=tuple(range(settings.smallest, settings.largest + 1)),
            least_float32=settings.smallest_float32,
            rounding_exponent=settings.rounding_at,
            device=settings.device,
        )
        found.append(Cell(_name(activation, seed), cell, {"of": of}, data))
    return found


def _name(activation: str, seed: int) -> str:
    return f"cells/{activation}_seed_{seed}"


def _with_best(dataset: xr.Dataset) -> xr.Dataset:
    """Adds the best ε and the least error, measured and predicted, network by network."""
    for suffix in ("", "_predicted"):
        found = xr.apply_ufunc(
            _best,
            dataset["epsilon"],
            dataset[f"slope_error{suffix}"].where(dataset["slope_error"].notnull()),
            input_core_dims=[["epsilon"], ["epsilon"]],
            output_core_dims=[["fitted"]],
            vectorize=True,
        )
        for index, name in enumerate(FITTED):
            dataset[name + suffix] = found.isel(fitted=index)
    return dataset


def _best(epsilons: Array, errors: Array) -> Array:
    """Best ε and least error, from log √((a εᵖ)² + (b/ε)²) fitted around the least error; NaN at an edge."""
    exponents, logs = np.log(epsilons), np.log(errors)
    lowest = int(np.nanargmin(logs))
    near = slice(max(0, lowest - WINDOW), lowest + WINDOW + 1)
    x, y = exponents[near] - exponents[lowest], logs[near]
    known = np.isfinite(y)
    if known[: WINDOW + 1].sum() < 3 or known[WINDOW:].sum() < 3:
        return np.full(len(FITTED), np.nan)
    x, y = x[known], y[known]

    def residual(parameters: Array) -> Array:
        log_a, log_b, order = parameters
        fitted: Array = np.logaddexp(2 * (log_a + order * x), 2 * (log_b - x)) / 2 - y
        return fitted

    log_a, log_b, order = optimize.least_squares(residual, (y.min(), y.min(), 1.0), bounds=([-99, -99, 0.1], 99)).x
    best = (log_b - log_a - np.log(order) / 2) / (1 + order)
    least = np.logaddexp(2 * (log_a + order * best), 2 * (log_b - best)) / 2
    return np.array([np.exp(best + exponents[lowest]), np.exp(least)])


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
