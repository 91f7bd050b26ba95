"""Do Ren et al.'s four variance formulas hold? Table 1 and figure 8 of "Scaling Forward Gradient With Local Losses".

A p-q-1 tanh MLP with squared error; the guess is that of its first layer's weights alone; batches of N examples are
drawn from a population. Variance counts both the guess and the choice of the batch, per element of the weight matrix:

    weights shared        (pq+2)/N V + (pq+1) S        activities shared        (q+2)/N V + (q+1) S
    weights independent   (pq+2)/N V + (pq+1)/N S      activities independent   (q+2)/N V + (q+1)/N S

V: mean variance over examples of a gradient's element; S: mean squared element of the population's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Estimator, WeightPerturbation
from fganalysis.results import plotting, store
from fganalysis.statistics.intervals import Z95
from studies.kit import command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GUESSES: dict[str, Estimator] = {
    "weights shared": WeightPerturbation(layers="separate"),
    "weights independent": WeightPerturbation(shared=False, layers="separate"),
    "activities shared": ActivityPerturbation(shared=True, layers="separate"),
    "activities independent": ActivityPerturbation(layers="separate"),
}
SWEEPS = ("batch size", "fan-in", "fan-out")


@dataclass(frozen=True)
class Settings:
    """Figure 8: batch size at fan-in = fan-out = 4, then fan-in or fan-out at batch size 4."""

    batch_sizes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    """N, at fan-in = fan-out = 4."""
    fans: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Fan-in (at fan-out 4) and fan-out (at fan-in 4), at N = 4."""
    draws: int = 5000
    """Guesses for each point, as in the paper."""
    guesses_per_batch: int = 20
    """How many of them share a batch; batches are what the interval is taken over."""
    population: int = 4096
    """Examples that batches are drawn from, with replacement."""
    seed: int = 0
    """Seed of everything."""
    out: Path = Path("results/ren_variance")
    """Where the result and the figure go."""

    def __post_init__(self) -> None:
        command_line.check(self)
        if self.draws <= self.guesses_per_batch:
            raise ValueError(
                f"draws must be more than guesses_per_batch, {self.guesses_per_batch}, as intervals are over batches, "
                f"got {self.draws}"
            )


def main(settings: Settings) -> xr.Dataset:
    points = [("batch size", n, (4, 4, n)) for n in settings.batch_sizes]
    points += [("fan-in", p, (p, 4, 4)) for p in settings.fans]
    points += [("fan-out", q, (4, q, 4)) for q in settings.fans]
    rows = [_point(settings, *shape) for _, _, shape in tqdm(points, unit="point")]
    index = xr.Dataset(coords={"point": np.arange(len(points))})
    dataset = xr.concat(rows, dim="point").assign_coords(
        sweep=("point", [sweep for sweep, _, _ in points]), value=("point", [value for _, value, _ in points])
    )
    dataset = dataset.merge(index)
    for name in ("variance", "variance_se", "predicted"):
        dataset[name].attrs = {"units": "(loss per unit of weight)^2", "long_name": f"{name} of a weight's gradient"}
    dataset["z"] = (dataset["variance"] - dataset["predicted"]) / dataset["variance_se"]
    dataset["z"].attrs = {"units": "1", "long_name": "(measured - predicted) / standard error"}
    store.write(dataset, settings.out / "ren_variance.nc")
    plotting.save(_figure(dataset), settings.out / "ren_variance.png")
    _print(dataset)
    return dataset


def _point(settings: Settings, fan_in: int, fan_out: int, batch: int) -> xr.Dataset:
    population = _population(settings, fan_in, fan_out)
    # Every example's own weight gradient; the snapshot's carry 1 over the population.
    first, gradient = population.taps[0], population.gradients[0] * population.n_examples
    per_example = torch.einsum("bo,bi->boi", gradient, first.inputs)
    truth = per_example.mean(0)
    spread = float((per_example - truth).square().mean())
    signal = float(truth.square().mean())
    pq, q = fan_in * fan_out, fan_out
    predicted = {
        "weights shared": (pq + 2) / batch * spread + (pq + 1) * signal,
        "weights independent": (pq + 2) / batch * spread + (pq + 1) / batch * signal,
        "activities shared": (q + 2) / batch * spread + (q + 1) * signal,
        "activities independent": (q + 2) / batch * spread + (q + 1) / batch * signal,
    }
    rng = np.random.default_rng([settings.seed, fan_in, fan_out, batch])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    n_batches = -(-settings.draws // settings.guesses_per_batch)
    errors = {name: np.empty(n_batches) for name in GUESSES}
    for index in range(n_batches):
        rows = torch.from_numpy(rng.integers(population.n_examples, size=batch))
        snapshot = fga.capture(
            population.network, population.loss_fn, population.inputs[rows], population.targets[rows]
        )
        for name, estimator in GUESSES.items():
            errors[name][index] = _mean_squared_error(estimator, snapshot, truth, settings, generator)
    names = list(GUESSES)
    means = [errors[name].mean() for name in names]
    standard_errors = [errors[name].std(ddof=1) / np.sqrt(n_batches) for name in names]
    return xr.Dataset(
        {
            "variance": ("guess_kind", means),
            "variance_se": ("guess_kind", standard_errors),
            "predicted": ("guess_kind", [predicted[name] for name in names]),
        },
        coords={"guess_kind": names},
    )


def _population(settings: Settings, fan_in: int, fan_out: int) -> Snapshot:
    network = fga.networks.mlp([fan_in, fan_out, 1], bias=False, seed=settings.seed, activation=torch.nn.Tanh).double()
    generator = torch.Generator().manual_seed(settings.seed + 1)
    inputs = torch.randn(settings.population, fan_in, generator=generator, dtype=torch.float64)
    noise = torch.randn(settings.population, 1, generator=generator, dtype=torch.float64)
    targets = torch.sin(inputs.sum(1, keepdim=True)) + 0.5 * noise + 1.0
    return fga.capture(network, torch.nn.functional.mse_loss, inputs, targets)


def _mean_squared_error(
    estimator: Estimator, snapshot: Snapshot, truth: torch.Tensor, settings: Settings, generator: torch.Generator
) -> float:
    """The mean over guesses and elements of (guess − population gradient)², first layer."""
    total, left = 0.0, settings.guesses_per_batch
    while left:
        # The guesses with a weight matrix per example are large: a few at a time.
        at_once = max(1, min(left, 2**22 // (snapshot.n_examples * truth.numel())))
        with torch.no_grad():
            _, weights = estimator(snapshot, at_once, generator).dense(snapshot)
        first = weights[:, : truth.numel()].view(-1, *truth.shape)
        total += float((first - truth).square().sum())
        left -= at_once
    return total / (settings.guesses_per_batch * truth.numel())


def _figure(dataset: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(1, 3, figsize=(9.5, 3.2), sharey=True, layout="constrained")
    colours = seaborn.color_palette("colorblind", len(GUESSES))
    for axes, sweep in zip(grid, SWEEPS, strict=True):
        part = dataset.isel(point=np.flatnonzero(dataset["sweep"].values == sweep))
        for colour, name in zip(colours, GUESSES, strict=True):
            own = part.sel(guess_kind=name)
            axes.errorbar(
                own["value"], own["variance"], yerr=Z95 * own["variance_se"], fmt="o", ms=4, color=colour, label=name
            )
            axes.plot(own["value"], own["predicted"], color=colour, lw=1)
        axes.set(xscale="log", yscale="log", xlabel=sweep)
    grid[0].set_ylabel("variance of one weight's gradient\n((loss per unit of weight)²)")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, title="measured; lines: formulas"
    )
    return figure


def _print(dataset: xr.Dataset) -> None:
    print(f"{'sweep':>10} {'value':>6} {'guess':>23} {'measured':>22} {'formula':>10} {'z':>6}")
    for point in range(dataset.sizes["point"]):
        for name in GUESSES:
            own = dataset.isel(point=point).sel(guess_kind=name)
            print(
                f"{own['sweep'].item():>10} {own['value'].item():>6} {name:>23} "
                f"{own['variance'].item():>11.4g} ± {own['variance_se'].item():<8.2g} "
                f"{own['predicted'].item():>10.4g} {own['z'].item():>6.2f}"
            )
    z = np.abs(dataset["z"].values)
    print(f"{z.size} comparisons: {(z > 3).sum()} with |z| > 3, {(z > 4).sum()} with |z| > 4; largest {z.max():.2f}")


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
