"""How often the intervals of `fganalysis.measure` hold the truth: exact, with standard errors, and by a baseline.

Each name of a truth is a layer with intervals of its own. So one call with hundreds of names, whose draws do not depend
on each other, is hundreds of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate
from studies.calibration.counting import of_all_layers

Array = NDArray[np.float64]
GRADIENT = np.array([0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
NAMES_AT_ONCE = 250  # Samples of a call: another number gives other draws.
STANDARD_ERROR = 0.05  # Of every entry of an estimated truth.
QUANTITIES = (
    *("bias", "squared_bias", "relative_bias", "shrinkage", "variance", "mse", "efficiency", "best_scale"),
    *("cosine", "directional_bias", "descent_probability"),
)


@dataclass(frozen=True)
class Law:
    """draw: (shape, generator) → guesses (*shape, entry). mean: E ĝ. square: E ‖ĝ‖²."""

    draw: Callable[[tuple[int, ...], np.random.Generator], Array]
    mean: Array
    square: float


def _along_directions(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    directions = rng.standard_normal((*shape, len(GRADIENT)))
    return (directions @ GRADIENT)[..., None] * directions


def _shrunk(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return SHRINKAGE * GRADIENT + rng.standard_normal((*shape, len(GRADIENT)))


def _skewed(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return GRADIENT * rng.standard_exponential((*shape, len(GRADIENT))) + OFFSET


SQUARED = float(GRADIENT @ GRADIENT)
SHRINKAGE = 0.8
OFFSET = 0.1 * np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
LAWS = {
    "weight perturbation": Law(_along_directions, GRADIENT, (len(GRADIENT) + 2) * SQUARED),
    "shrunk, with normal noise": Law(_shrunk, SHRINKAGE * GRADIENT, SHRINKAGE**2 * SQUARED + len(GRADIENT)),
    "biased, with exponential noise": Law(
        _skewed, GRADIENT + OFFSET, float(SQUARED + (GRADIENT + OFFSET) @ (GRADIENT + OFFSET))
    ),
}
TRUTHS = ("exact", "standard errors", "baseline")


def truths(law: Law) -> dict[str, Array]:
    """Of every quantity; NaN where no closed form is known."""
    error, along = law.mean - GRADIENT, float(law.mean @ GRADIENT)
    squared_bias, variance = float(error @ error), law.square - float(law.mean @ law.mean)
    found = {
        "bias": squared_bias**0.5,
        "squared_bias": squared_bias,
        "relative_bias": (squared_bias / SQUARED) ** 0.5,
        "shrinkage": along / SQUARED,
        "directional_bias": 1 - along**2 / (SQUARED * float(law.mean @ law.mean)),
        "variance": variance,
        "mse": variance + squared_bias,
        "efficiency": along**2 / (SQUARED * law.square),
        "best_scale": along / law.square,
        "cosine": np.nan,
        "descent_probability": np.nan,
    }
    if abs(found["directional_bias"]) < 1e-12:
        found["directional_bias"] = 0.0
    return {name: np.asarray(value) for name, value in found.items()}


def counted_draws(law: str, truth: str, repeats: int, n_guesses: int, seed: int, device: str) -> xr.Dataset:
    """How often each interval held the truth, over (quantity, space, layer). device: none is taken."""
    del device
    parts = []
    for index, start in enumerate(range(0, repeats, NAMES_AT_ONCE)):
        count = min(NAMES_AT_ONCE, repeats - start)
        parts.append(_measured(LAWS[law], truth, count, n_guesses, int(_words(seed, index))))
    joined = xr.concat(parts, dim=schema.LAYER, data_vars="all", coords="minimal", compat="override")
    found = {}
    for quantity in QUANTITIES:
        if f"{quantity}_low" not in joined or joined[f"{quantity}_low"].isnull().all():
            continue
        value, low, high, wide, short = (
            joined[quantity + part].values.ravel() for part in ("", "_low", "_high", "_wide", "_short")
        )
        found[quantity] = Estimate(value, value, low, high, wide == 1, np.where(short == 1, np.inf, np.nan))
    return of_all_layers(found, truths(LAWS[law]), schema.PARAMETER)


def _words(seed: int, index: int) -> np.uint32:
    word: np.uint32 = np.random.SeedSequence((seed, index)).generate_state(1, np.uint32)[0]
    return word


def _measured(law: Law, truth: str, count: int, n_guesses: int, seed: int) -> xr.Dataset:
    """A Dataset of so many samples, over layer."""
    names = [f"sample {number}" for number in range(count)]

    def draw(n: int, rng: np.random.Generator) -> dict[str, Array]:
        return dict(zip(names, np.moveaxis(law.draw((n, count), rng), 1, 0), strict=True))

    def baseline(n: int, rng: np.random.Generator) -> dict[str, Array]:
        return dict(zip(names, np.moveaxis(_along_directions((n, count), rng), 1, 0), strict=True))

    if truth == "baseline":
        found = fga.measure(draw, None, n_guesses, seed, baseline=baseline)
    elif truth == "exact":
        found = fga.measure(draw, dict.fromkeys(names, GRADIENT), n_guesses, seed)
    else:
        rng = np.random.default_rng(seed)
        drawn = {name: GRADIENT + STANDARD_ERROR * rng.standard_normal(len(GRADIENT)) for name in names}
        errors = dict.fromkeys(names, np.full(len(GRADIENT), STANDARD_ERROR))
        found = fga.measure(draw, fga.truth(drawn, standard_error=errors), n_guesses, seed)
    return found.isel({schema.LAYER: slice(0, count)})
