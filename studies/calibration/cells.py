"""What `studies.calibration` counts: how often intervals hold the truth, and what `check_unbiased` says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, Subsampled
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.measuring.blocks import MOST_GROUPS
from fganalysis.measuring.direct import MOST_GUESSES_PER_BLOCK
from fganalysis.papers.wang2025.intervals import bias_and_variance
from fganalysis.results import schema
from fganalysis.statistics import quantities
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.squared_norm import squared_norm
from studies.calibration.counting import LEVELS, counted
from studies.calibration.estimators import (
    DIMENSIONS,
    ESTIMATORS,
    HARD,
    MANY_WEIGHTS,
    UNBIASED,
    Shrunk,
    closed_forms,
    network,
    of_many_weights,
)

Array = NDArray[np.float64]
NUMBERS_AT_ONCE = 2**18  # Drawn: another number gives other guesses.
MEASURED_AT_ONCE = 100  # Repeats: fewer cost a call each.
PARTS = ("variance within", "variance between")  # `fganalysis.measuring.variance_parts`.
REPEATS_OF_PARTS = 1000  # At most: they are drawn one by one.
COUNTED = (*schema.QUANTITIES, *PARTS)


@dataclass(frozen=True)
class Draws:
    """Raw material of many samples: p, q (repeat, space, layer, guess), Gram matrices (repeat, space, layer, group,
    group), and, a tap each, the group means of s and e of `fganalysis.papers.wang2025`, (repeat, group, unit)."""

    inner_product: Array
    squared_length: Array
    gram: Array
    second_moments: list[Array]
    errors: list[Array]

    def scalars(self) -> tuple[Array, Array, Array]:
        return self.inner_product, self.squared_length, self.gram


def drawn(snapshot: Snapshot, estimator: Estimator, repeats: int, n_guesses: int, generator: torch.Generator) -> Draws:
    """``repeats`` samples of ``n_guesses`` guesses in the groups that `fga.sample` would deal them to.

    All guesses of all repeats are drawn in one call, so no repeat costs a call.
    """
    groups = min(n_guesses // MOST_GUESSES_PER_BLOCK, MOST_GROUPS)
    with torch.no_grad():
        guesses: Any = estimator(snapshot, repeats * n_guesses, generator)
        scalars = [part.unflatten(-1, (repeats, n_guesses)).movedim(2, 0) for part in guesses.inner_products(snapshot)]
        at_activations = isinstance(guesses, ActivationEstimates)
        exact = snapshot.gradients if at_activations else snapshot.weight_gradients
        grams, seconds, errors = [], [], []
        for tap, gradient, guess in zip(snapshot.taps, exact, _dense(guesses), strict=True):
            error = guess.unflatten(0, (repeats, groups, -1)) - gradient
            mean = error.mean(2)
            own, in_weights = _gram(mean), _gram(tap.kernel_root @ mean if at_activations else mean)
            grams.append(torch.stack([own if at_activations else torch.full_like(own, torch.nan), in_weights], dim=1))
            if at_activations:
                seconds.append(error.square().mean((2, 3)).cpu().numpy())
                errors.append(mean.mean(2).cpu().numpy())
    p, q, gram = (_with_all_layers(part) for part in (*scalars, torch.stack(grams, dim=2)))
    return Draws(p, q, gram, seconds, errors)


def drawn_of_many(repeats: int, n_guesses: int, generator: np.random.Generator) -> Draws:
    """Samples of weight perturbation of `DIMENSIONS` weights, ĝ = t v with t = ⟨v, g⟩ and ‖g‖ = 1, from their law.

    Given the slopes, the group means across the gradient are normal, m_a = s_a w_a with s_a² the sum of t² over n², and
    the Gram matrix of the w_a has a Wishart law, drawn after Bartlett 1933. The lengths of the guesses are drawn beside
    it: they depend on it by their deviation from their mean alone, of one part in √(D/2).
    """
    groups = min(n_guesses // MOST_GUESSES_PER_BLOCK, MOST_GROUPS)
    slopes = generator.normal(size=(repeats, groups, n_guesses // groups))
    lower = np.tril(generator.normal(size=(repeats, groups, groups)), -1)
    diagonal = np.sqrt(generator.chisquare(DIMENSIONS - 1 - np.arange(groups), size=(repeats, groups)))
    lower += diagonal[..., None] * np.eye(groups)
    spread = np.sqrt((slopes**2).sum(-1)) / slopes.shape[-1]
    along = (slopes**2).mean(-1) - 1
    gram = spread[..., :, None] * (lower @ lower.mT) * spread[..., None, :] + along[..., :, None] * along[..., None, :]
    p = (slopes**2).reshape(repeats, n_guesses)
    q = p * (p + generator.chisquare(DIMENSIONS - 1, size=p.shape))
    p, q, gram = (np.stack([np.full_like(part, np.nan), part], axis=1)[:, :, None] for part in (p, q, gram))
    return Draws(p, q, gram, [], [])


def _joined(parts: list[Draws]) -> Draws:
    p, q, gram = (np.concatenate(arrays) for arrays in zip(*(part.scalars() for part in parts), strict=True))
    lists = ([part.second_moments for part in parts], [part.errors for part in parts])
    seconds, errors = ([np.concatenate(taps) for taps in zip(*one, strict=True)] for one in lists)
    return Draws(p, q, gram, seconds, errors)


def _with_all_layers(part: Tensor) -> Array:
    array: Array = torch.cat([part, part.sum(2, keepdim=True)], dim=2).double().cpu().numpy()
    return array


def _dense(guesses: Any) -> tuple[Tensor, ...]:
    if isinstance(guesses, ActivationEstimates):
        return guesses.guesses
    pairs = zip(guesses.coefficients.T, guesses.directions, strict=True)
    return tuple(coefficient[:, None, None] * direction for coefficient, direction in pairs)


def _gram(means: Tensor) -> Tensor:
    flat = means.flatten(2)
    return flat @ flat.mT


def measured(draws: Draws, squared_gradient: Array) -> dict[str, Estimate]:
    """Every reported quantity of every repeat, (repeat, space, layer); those of one space stand at the activations."""
    groups, n_guesses = draws.gram.shape[-1], draws.inner_product.shape[-1]
    of_guess = np.arange(n_guesses) // (n_guesses // groups)
    found = quantities.quantities(draws.inner_product, draws.squared_length, draws.gram, of_guess, squared_gradient)
    shape = draws.inner_product.shape[:-1]
    for index, (second, error) in enumerate(zip(draws.second_moments, draws.errors, strict=True)):
        for name, estimate in bias_and_variance(second, error, np.full(groups, n_guesses / groups)).items():
            nothing = replace(Estimate.missing(shape), wide=np.zeros(shape, dtype=bool), tail=np.full(shape, np.nan))
            own = found.setdefault(name, nothing)
            # Of groups alone, so that it says of its tail what `fga.sample` takes from the guesses.
            alike = np.asarray(found["mse" if name == "wang2025_variance" else "bias"].tail)[:, 0, index]
            for field in dataclasses.fields(Estimate):
                part = alike if field.name == "tail" else getattr(estimate, field.name)
                getattr(own, field.name)[:, 0, index] = part
    return found


def coverage(name: str, repeats: int, n_guesses: int, seed: int, device: str) -> xr.Dataset:
    """How often each interval held the truth, and quantiles of z, over (quantity, space, layer).

    The truth is the closed form; where none is known, the mean of all repeats' values, known √repeats times better.
    """
    snapshot, estimator = network(name, device), (ESTIMATORS | HARD)[name]
    squares, layers = squared_gradients(snapshot), [*snapshot.layers, schema.ALL_LAYERS]
    generator, of_law = torch.Generator(device).manual_seed(seed), np.random.default_rng(seed)
    parts: dict[str, list[tuple[Estimate, Array]]] = {}
    if isinstance(estimator, Subsampled):
        exact = fga.predict_variance_parts(estimator, snapshot)
        truths = dict(zip(PARTS, (exact.within.value, exact.between.value), strict=True))
        for _ in range(min(repeats, REPEATS_OF_PARTS)):
            found = fga.variance_parts(estimator, snapshot, n_guesses, generator)
            for quantity, estimate in zip(PARTS, (found.within, found.between), strict=True):
                one = Estimate(*(np.asarray(part)[None] for part in dataclasses.astuple(estimate)))
                parts.setdefault(quantity, []).append((one, np.full(one.value.shape, np.nan)))
    else:
        truths = closed_forms(snapshot, estimator)
        numbers = estimator(snapshot, 1, torch.Generator(device).manual_seed(0)).numbers_per_guess()
        if name == MANY_WEIGHTS:
            truths, squares, layers = of_many_weights(), np.ones((len(schema.SPACES), 1)), [schema.ALL_LAYERS]
        at_once = max(1, NUMBERS_AT_ONCE // (n_guesses * numbers))
        waiting: list[Draws] = []
        for start in range(0, repeats, at_once):
            batch = min(at_once, repeats - start)
            if name == MANY_WEIGHTS:
                waiting.append(drawn_of_many(batch, n_guesses, of_law))
            else:
                waiting.append(drawn(snapshot, estimator, batch, n_guesses, generator))
            if start + batch < repeats and sum(len(draws.gram) for draws in waiting) < MEASURED_AT_ONCE:
                continue
            draws, waiting = _joined(waiting), []
            weights = np.ones(draws.gram.shape[-1])
            for quantity, estimate in measured(draws, squares).items():
                score = np.full(estimate.value.shape, np.nan)
                if quantity == "squared_bias":
                    score = squared_norm(draws.gram, weights).score(truths[quantity])
                parts.setdefault(quantity, []).append((estimate, score))
    rows = [
        counted(found, truths[quantity], floor=float(quantity == "directional_bias"))
        for quantity, found in parts.items()
    ]
    dataset = xr.concat(rows, dim="quantity").assign_coords(quantity=list(parts))
    return dataset.assign_coords({schema.SPACE: list(schema.SPACES), schema.LAYER: layers, "level": LEVELS})


def false_alarms(name: str, runs: int, alpha: float, max_guesses: int, seed: int, device: str) -> xr.Dataset:
    """An unbiased estimator's runs that are called biased; none may stop as unbiased, so that all looks are had."""
    snapshot = network("one output", device)
    verdicts = [
        fga.check_unbiased(UNBIASED[name], snapshot, alpha, 1e-9, max_guesses, seed=seed + run) for run in range(runs)
    ]
    outcomes = [one.outcome for one in verdicts]
    return xr.Dataset({"false_alarms": outcomes.count("biased"), "runs": runs} | _wrong_intervals(verdicts, 0.0))


def power(bias: float, runs: int, alpha: float, max_guesses: int, seed: int, device: str) -> xr.Dataset:
    """Guesses drawn until the bias is found, (run,); NaN where it is not."""
    snapshot = network("one output", device)
    verdicts = [
        fga.check_unbiased(Shrunk(bias), snapshot, alpha, 1e-9, max_guesses, seed=seed + run) for run in range(runs)
    ]
    needed = [float(one.n_guesses) if one.outcome == "biased" else np.nan for one in verdicts]
    return xr.Dataset({"guesses_needed": ("run", needed)} | _wrong_intervals(verdicts, bias))


def _wrong_intervals(verdicts: list[fga.Verdict], shrunk: float) -> dict[str, int]:
    """How many of the verdicts' findings have bounds beyond the truth, of an estimator with mean (1 − ``shrunk``) g."""
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    return {
        "findings": len(findings),
        "lower_wrong": sum(one.interval[0] > shrunk for one in findings),
        "upper_wrong": sum(one.interval[1] < shrunk for one in findings),
        "scale_wrong": sum(
            not one.shrinkage_interval[0] <= 1 - shrunk <= one.shrinkage_interval[1] for one in findings
        ),
    }
