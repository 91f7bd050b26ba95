"""Does learned feedback (FDFA) lower the variance of forward gradients, what is its bias, and does it train better?

Bacho & Chu (2023) against weight- and activity-perturbed forward gradients, on an MLP with two hidden ReLU layers.

1. At frozen weights, over α, step and width, before and after training: FDFA's variance, its lag and the spread of the
   output Jacobian over examples apart, from independent histories, beside `theory.feedback`
   (docs/mathematics.md#learned-feedback).
2. Is the stationary variance α/(2−α) times the activity-perturbed one?
3. Training by each, every one at the learning rate that suits it.

`--network conv` is another page: the first question on the paper's small convolutional network, 15C5-P2-40C5-P2-128-10.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

import fganalysis as fga
from fganalysis.results.cells import Results, run_cells
from fganalysis.results.identity import Cell
from fganalysis.training.training_log import LOGGED
from studies.fdfa import conv, conv_figures, conv_page, figures
from studies.fdfa import page as fdfa_page
from studies.fdfa import training as fdfa_training
from studies.fdfa import variance as fdfa_variance
from studies.fdfa.conv import STAGES
from studies.kit import command_line, pages, seeds
from studies.kit.command_line import DatasetName
from studies.kit.digests import digests
from studies.kit.long_names import described


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """Some ten minutes of one core; the conv net five."""

    network: Literal["mlp", "conv"] = "mlp"
    """Which network, and so which page: fdfa.md or fdfa_conv.md."""
    dataset: DatasetName = "digits"
    """Examples of the networks at frozen weights and in training."""
    width: int = 64
    """Width of the two hidden layers where all rates are looked at, and of the networks that are trained."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Widths where the rates of `sweep_rates` are looked at."""
    rates: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.001, 0.0001)
    """α, at `width`; the paper's is 0.0001."""
    sweep_rates: tuple[float, ...] = (0.1, 0.01)
    """α at the other widths."""
    examples: int = 16
    """Examples in the batch at frozen weights."""
    trained_epochs: int = 20
    """Epochs of backpropagation before the second look at frozen weights."""
    histories: int = 256
    """Independent histories of the feedback matrices."""
    pooled: int = 32
    """Single steps for every history that stand for the activity-perturbed gradient."""
    longest: int = 5000
    """Steps of the longest history; later marks are predicted only."""
    guesses: int = 1024
    """Guesses of weight and activity perturbation."""
    training_rates: tuple[float, ...] = (0.1, 0.01, 0.001, 0.0001)
    """α in training."""
    adam_rate: float = 0.001
    """Rate of Adam on the feedback matrices, the rule of the paper's public code."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Of Adam on the weights; for each gradient the one with the smallest training loss on a seed of its own."""
    epochs: int = 30
    """Epochs of each training."""
    batch: int = 64
    """Examples in a training step, as in the paper."""
    seeds: int = 5
    """Trainings of each gradient at its learning rate."""
    seed: int = 0
    """Seed of everything."""
    conv_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the conv nets, their batches and noise; intervals are over them."""
    conv_channels: tuple[int, ...] = (15, 40)
    """Channels of the conv net's two convolutions, as in the paper."""
    conv_hidden: int = 128
    """Units of the conv net's hidden layer, as in the paper."""
    conv_epochs: int = 5
    """Epochs of backpropagation before the second look at the conv net."""
    conv_rates: tuple[float, ...] = (0.3, 0.1, 0.03)
    """α on the conv net."""
    conv_histories: int = 64
    """Independent histories of the conv net's feedback matrices."""
    conv_pooled: int = 8
    """Single steps for every history that stand for the activity-perturbed gradient of the conv net."""
    conv_guesses: int = 256
    """Guesses of weight and activity perturbation on the conv net."""
    out: Path = Path("results/fdfa")
    """Where results go, a file for each part; what is finished there is not computed again."""
    page: Path | None = None
    """Where the page and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self)
        if self.width not in self.widths:
            raise ValueError(f"widths must hold width, {self.width}, got {self.widths}")
        if not set(self.sweep_rates) <= set(self.rates):
            raise ValueError(f"sweep_rates must be among rates, {self.rates}, got {self.sweep_rates}")
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, for an interval, got {self.seeds}")
        if len(self.conv_seeds) < 2:
            raise ValueError(f"conv_seeds must be at least 2, for an interval, got {len(self.conv_seeds)}")
        if len(self.conv_channels) != 2:
            raise ValueError(f"conv_channels must be of two convolutions, got {self.conv_channels}")


def main(settings: Settings) -> xr.DataTree:
    return _conv(settings) if settings.network == "conv" else _mlp(settings)


def _conv(settings: Settings) -> xr.DataTree:
    results = run_cells(conv_cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    parts = {seed: results.dataset(_conv_name(seed)) for seed in settings.conv_seeds}
    dataset = seeds.joined(parts, _conv_settings(settings, settings.conv_seeds[-1]))
    dataset = conv.described(dataset).sortby("rate", ascending=False)
    tree = xr.DataTree.from_dict({"variance": dataset})
    pages.publish("fdfa_conv", tree, conv_page.page(dataset), conv_figures.figures(dataset), settings)
    return tree


def cells(settings: Settings) -> list[Cell]:
    """The networks at frozen weights, and the trainings whose learning rates are compared; or the conv nets."""
    return conv_cells(settings) if settings.network == "conv" else [*frozen_cells(settings), *trials(settings)]


def conv_cells(settings: Settings) -> list[Cell]:
    data = digests("digits")
    return [
        Cell(_conv_name(seed), conv.measured, {"of": _conv_settings(settings, seed)}, data, resumes=True)
        for seed in settings.conv_seeds
    ]


def _conv_name(seed: int) -> str:
    return f"cells/conv_seed_{seed}"


def _conv_settings(settings: Settings, seed: int) -> conv.Conv:
    return conv.Conv(
        seed=seed,
        channels=settings.conv_channels,
        hidden=settings.conv_hidden,
        epochs=settings.conv_epochs,
        examples=settings.examples,
        rates=settings.conv_rates,
        histories=settings.conv_histories,
        pooled=settings.conv_pooled,
        longest=settings.longest,
        guesses=settings.conv_guesses,
        device=settings.device,
    )


def _mlp(settings: Settings) -> xr.DataTree:
    results = run_cells(
        [*frozen_cells(settings), *trials(settings)],
        settings.out,
        workers=settings.workers,
        scheduler=settings.scheduler,
    )
    variance, training = _variance(settings, results), _training(settings, results)
    variance.attrs |= {name: getattr(settings, name) for name in ("dataset", "width", "examples", "histories")}
    training.attrs |= {name: getattr(settings, name) for name in ("dataset", "width", "batch", "epochs", "adam_rate")}
    tree = xr.DataTree.from_dict({"variance": variance, "training": training})
    pages.publish("fdfa", tree, fdfa_page.page(tree), figures.figures(tree), settings)
    return tree


def frozen_cells(settings: Settings) -> list[Cell]:
    """Every width, at initialisation and trained."""
    sizes = fdfa_variance.Sizes(settings.histories, settings.pooled, settings.longest, settings.guesses)
    chosen: dict[str, object] = {
        "dataset": settings.dataset,
        "examples": settings.examples,
        "seed": settings.seed,
        "sizes": sizes,
    }
    chosen |= {"device": settings.device}
    data, found = digests(settings.dataset), []
    for width, stage in itertools.product(settings.widths, STAGES):
        rates = settings.rates if width == settings.width else settings.sweep_rates
        epochs = settings.trained_epochs if stage == "trained" else 0
        own = chosen | {"width": width, "epochs": epochs, "rates": rates}
        found.append(Cell(_frozen_name(width, stage), fdfa_variance.measure, own, data, resumes=True))
    return found


def _frozen_name(width: int, stage: str) -> str:
    return f"cells/width_{width:04d}_{stage}"


def _variance(settings: Settings, results: Results) -> xr.Dataset:
    """Frozen weights: (width, stage, rate, time, space, layer), NaN where a rate is not looked at."""
    rows = []
    for width in settings.widths:
        parts = [results.dataset(_frozen_name(width, stage)) for stage in STAGES]
        both = xr.concat(parts, dim="stage", data_vars="all", combine_attrs="drop")
        rows.append(both.assign_coords(stage=list(STAGES)))
    dataset = xr.concat(rows, dim="width", data_vars="all", join="outer", combine_attrs="drop")
    dataset = dataset.assign_coords(width=list(settings.widths)).sortby("rate", ascending=False)
    return _described(_with_ratio(dataset))


def _with_ratio(dataset: xr.Dataset) -> xr.Dataset:
    """The last mark's variance over α/(2−α) times the pooled one; the two are independent, so are their errors."""
    last, factor = dataset.isel(time=-1, drop=True), dataset["rate"] / (2 - dataset["rate"])
    ratio = last["variance"] / (factor * dataset["pooled_variance"])
    errors = (last["variance_se"] / last["variance"]) ** 2
    errors = errors + (dataset["pooled_variance_se"] / dataset["pooled_variance"]) ** 2
    return dataset.assign(ratio=ratio, ratio_se=ratio * errors**0.5)


def _described(dataset: xr.Dataset) -> xr.Dataset:
    squared = "(loss per unit of the space)^2"
    known = {
        "variance": "total variance of FDFA's guess",
        "stationary_variance": "total variance of FDFA's guess after infinitely many steps",
        "squared_bias": "squared norm of the bias of FDFA's guess",
        "mse": "mean squared error of FDFA's guess",
        "efficiency": "fraction of the exact step's progress that FDFA's guess makes at its best step size",
        "lag": "squared norm of the lag",
        "lag_start": "squared norm of the lag at step 0",
        "spread": "squared norm of the bias by the spread of the Jacobian over examples",
        "cross": "twice the inner product of lag and spread",
        "cross_start": "twice the inner product of lag and spread at step 0",
        "pooled_variance": "total variance of the activity-perturbed gradient that the matrices average",
        "weight_variance": "total variance of weight perturbation",
        "activity_variance": "total variance of activity perturbation",
        "squared_gradient": "squared norm of the exact gradient",
        "ratio": "stationary variance over alpha/(2 - alpha) times the pooled one",
        "step": "step of the mark, -1 where it was not reached",
    }
    plain = ("ratio", "step", "efficiency")
    described(dataset, {name: (words, "1" if name in plain else squared) for name, words in known.items()})
    dataset["time"].attrs = {"units": "1", "long_name": "alpha times step"}
    dataset["rate"].attrs = {"units": "1", "long_name": "alpha, rate of the moving average"}
    return dataset


def trials(settings: Settings) -> list[Cell]:
    """A training of every gradient at every learning rate, on a seed of its own."""
    data = digests(settings.dataset)
    return [
        _trial(settings, data, name, rate, settings.seed)
        for name in fdfa_training.gradients(settings.training_rates, settings.adam_rate)
        for rate in settings.learning_rates
    ]


def _trial(settings: Settings, data: dict[str, str], name: str, learning_rate: float, seed: int) -> Cell:
    chosen = command_line.depends_on(settings, "dataset", "width", "epochs", "adam_rate", "training_rates", "device")
    chosen |= {"batch_size": settings.batch, "gradient": name, "learning_rate": learning_rate, "seed": seed}
    return Cell(_trial_name(name, learning_rate, seed), fdfa_training.run, chosen, data, resumes=True)


def _trial_name(name: str, learning_rate: float, seed: int) -> str:
    return f"cells/{_file_name(name)}_{learning_rate:g}_{seed}"


def _training(settings: Settings, tried: Results) -> xr.Dataset:
    """Logs over (gradient, seed, step) at the learning rate chosen on the first seed, which is not among them."""
    data = fga.datasets.load(settings.dataset)
    steps = np.arange(settings.epochs + 1) * -(-len(data.train_inputs) // settings.batch)
    seeds = [settings.seed + 1 + index for index in range(settings.seeds)]
    makers = fdfa_training.gradients(settings.training_rates, settings.adam_rate)
    losses = {
        name: {
            rate: float(tried.dataset(_trial_name(name, rate, settings.seed))["loss"].reindex(step=steps)[-1])
            for rate in settings.learning_rates
        }
        for name in makers
    }
    chosen = {name: fdfa_training.best(of_rate) for name, of_rate in losses.items()}
    known = digests(settings.dataset)
    wanted = [_trial(settings, known, name, rate, seed) for name, rate in chosen.items() for seed in seeds]
    results = run_cells(wanted, settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = []
    for name, rate in chosen.items():
        logs = [results.dataset(_trial_name(name, rate, seed)).reindex(step=steps) for seed in seeds]
        rows.append(xr.concat(logs, dim="seed", data_vars="all", combine_attrs="drop"))
    dataset = xr.concat(rows, dim="gradient", data_vars="all", combine_attrs="drop")
    dataset = dataset.assign_coords(gradient=list(makers), seed=seeds)
    edge = np.isin(list(chosen.values()), [min(settings.learning_rates), max(settings.learning_rates)])
    for quantity in fdfa_training.QUANTITIES:
        long_name, units = LOGGED[quantity]
        dataset[quantity].attrs = {"units": units, "long_name": long_name}
    dataset["learning_rate"] = ("gradient", list(chosen.values()))
    dataset["at_edge"] = ("gradient", edge.astype(np.int8))
    dataset["learning_rate"].attrs = {"units": "1", "long_name": "learning rate of Adam on the weights"}
    dataset["at_edge"].attrs = {"units": "1", "long_name": "whether it is the smallest or largest that was tried"}
    return dataset


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "." else "_" for letter in name.replace("α", "rate"))


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
