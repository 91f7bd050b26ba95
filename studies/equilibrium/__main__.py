"""Which bias does equilibrium propagation have, and is it the symmetric nudge that lets it scale to deep networks?

The three guesses of fganalysis.problems.equilibrium against the exact gradient by implicit differentiation, on layered
energy networks of several depths before and after training on digits: relative bias, cosine and wrong signs over the
nudge β, the tolerance of the relaxation and the layer, beside the leading powers of β in theory.equilibrium. A small β
leaves little of the loss in the state, so that the end of the relaxation decides; a large β has bias. The study gives
the least error between the two, by depth. Trainings with each of the guesses at a large β end it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.equilibrium import figures
from studies.equilibrium import page as equilibrium_page
from studies.equilibrium.cells import GUESSES, Network, Training, cell, training
from studies.kit import command_line, pages
from studies.kit.digests import digests
from studies.kit.long_names import described

QUANTITIES = {
    "relative_bias": ("norm of the bias over norm of the gradient", "1"),
    "shrinkage": ("inner product of mean guess and gradient over the squared norm of the gradient", "1"),
    "cosine": ("cosine of guess and gradient", "1"),
    "wrong_signs": ("share of weights whose guess has not the sign of the gradient", "1"),
    "random_sign_noise": ("root of the total variance over norm of the gradient, random sign", "1"),
    "leading": ("relative bias over beta (one-sided) or beta^2 (symmetric) for small beta, by theory", "1"),
    "gradient_norm": ("norm of the gradient", "loss per unit of weight"),
    "loss": ("mean loss of the batch", "loss"),
    "accuracy": ("share of test examples that are classified right", "1"),
    "final_accuracy": ("share of test examples classified right after the training with a guess", "1"),
    "final_loss": ("mean loss of all training examples after the training with a guess", "loss"),
}


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """The networks, the nudges and the tolerances."""

    depths: tuple[int, ...] = (1, 2, 4, 6)
    """Hidden layers."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and batches; intervals are over them."""
    width: int = 32
    """Units of each hidden layer; 64 inputs, 10 outputs."""
    gain: float = 0.45
    """All singular values of the initial weights; below one half the energy is convex."""
    batch: int = 32
    """Examples of digits that the loss is the mean over, and of a step of training."""
    steps: int = 200
    """Steps of the training, with the symmetric guess, before the second measurement."""
    rate: float = 0.1
    """Step size of all trainings."""
    exponents: tuple[int, ...] = (-1, -2, -3, -4, -6, -8, -10, -12, -14, -16)
    """Binary logarithms of the nudges β."""
    tolerances: tuple[float, ...] = (1e-4, 1e-8, 1e-12)
    """Of the relaxation: it ends when no unit moves by more in a sweep. The least of them is that of the gradient."""
    random_guesses: int = 256
    """Guesses with a random sign."""
    training_depth: int = 2
    """Hidden layers of the networks that are trained with each guess."""
    training_exponent: int = -1
    """Binary logarithm of the nudge β of these trainings."""
    training_steps: int = 100
    """Steps of these trainings."""
    out: Path = Path("results/equilibrium")
    """Where results go, a file for each network; what is finished there is not computed again."""
    page: Path | None = None
    """Where equilibrium.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"exponents": -40, "training_exponent": -40})
        if max(*self.exponents, self.training_exponent) >= 0:
            raise ValueError("exponents must be below 0: β = 1 takes the outputs' energy away at −β")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be at least 2, as intervals are over them, got {len(self.seeds)}")
        if len(self.exponents) < 2:
            raise ValueError(f"exponents must be at least 2, as an order is fitted, got {len(self.exponents)}")


def main(settings: Settings) -> xr.Dataset:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = []
    for hidden in settings.depths:
        row = [results.dataset(_network(hidden, seed)) for seed in settings.seeds]
        rows.append(xr.concat(row, dim="seed", data_vars="all", combine_attrs="drop"))
    layers = max(rows, key=lambda row: row.sizes["layer"])["layer"].values
    rows = [row.reindex(layer=layers) for row in rows]  # NaN where a network has no such layer.
    dataset = xr.concat(rows, dim="hidden", data_vars="all", combine_attrs="drop")
    dataset = dataset.assign_coords(hidden=list(settings.depths), seed=list(settings.seeds))
    trainings = [
        xr.concat([results.dataset(_training(guess, seed)) for seed in settings.seeds], dim="seed", data_vars="all")
        for guess in GUESSES
    ]
    joined = xr.concat(trainings, dim="guess", data_vars="all").assign_coords(guess=list(GUESSES))
    dataset = described(dataset.merge(joined), QUANTITIES)
    dataset.attrs = {
        name: getattr(settings, name)
        for name in ("width", "gain", "batch", "steps", "rate", "random_guesses", "training_depth", "training_steps")
    }
    dataset.attrs["training_beta"] = 2.0**settings.training_exponent
    pages.publish("equilibrium", dataset, equilibrium_page.page(dataset), figures.figures(dataset), settings)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every network, and every training with a guess."""
    data, found = digests("digits"), []
    shared = {name: getattr(settings, name) for name in ("width", "gain", "batch", "rate", "device")}
    for hidden, seed in itertools.product(settings.depths, settings.seeds):
        network = Network(
            hidden=hidden,
            seed=seed,
            steps=settings.steps,
            exponents=tuple(sorted(settings.exponents, reverse=True)),
            tolerances=tuple(sorted(settings.tolerances, reverse=True)),
            random_guesses=settings.random_guesses,
            **shared,
        )
        found.append(Cell(_network(hidden, seed), cell, {"of": network}, data))
    for guess, seed in itertools.product(GUESSES, settings.seeds):
        chosen = Training(
            hidden=settings.training_depth,
            seed=seed,
            steps=settings.training_steps,
            guess=guess,
            beta=0.0 if guess == "gradient" else float(np.exp2(settings.training_exponent)),
            **shared,
        )
        found.append(Cell(_training(guess, seed), training, {"of": chosen}, data))
    return found


def _network(hidden: int, seed: int) -> str:
    return f"cells/{hidden}_hidden_seed_{seed}"


def _training(guess: str, seed: int) -> str:
    return f"cells/training_{guess.replace(' ', '_')}_seed_{seed}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
