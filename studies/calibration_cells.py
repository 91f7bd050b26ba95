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
from fganalysis import moments, sampling, schema
from fganalysis.estimates import ActivationEstimates, WeightEstimates
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    MultiTangent,
    OrthogonalUpstream,
    Subsampled,
    Upstream,
    WeightPerturbation,
)
from fganalysis.intervals import Estimate
from fganalysis.noise import Rademacher
from fganalysis.sampling import MOST_GROUPS, MOST_GUESSES_PER_BLOCK
from fganalysis.snapshot import Snapshot
from fganalysis.squared_norm import squared_norm

Array = NDArray[np.float64]
NUMBERS_AT_ONCE = 2**18
ROUNDING = 1e-9  # Relative: truths and bounds of what does not vary differ by so much.
VERSION = 2  # Of what a coverage holds and of the intervals that it counts: an older one is computed again.
LEVELS = np.linspace(0.005, 0.995, 100)  # Of the quantiles of z that are kept.


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
        hits = torch.rand(n_guesses, generator=generator, dtype=gradients[0].dtype) < self.probability
        coefficients = (hits.to(gradients[0].dtype) / self.probability).unsqueeze(1).expand(-1, len(gradients))
        return WeightEstimates(coefficients, tuple(g.expand(n_guesses, *g.shape) for g in gradients))


@dataclass(frozen=True)
class Shrunk:
    """Weight perturbation times 1 − ``shrinkage``: a bias of that size, relative to the gradient."""

    shrinkage: float

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        guesses = WeightPerturbation()(snapshot, n_guesses, generator)
        return replace(guesses, coefficients=(1 - self.shrinkage) * guesses.coefficients)


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
PARTS = ("variance within", "variance between")  # `fganalysis.variance_parts`.
REPEATS_OF_PARTS = 1000  # At most: they are drawn one by one.
COUNTED = (*schema.QUANTITIES, *PARTS)
HEAVY = ("activity, shared, batch slope", "activity, Laplace", "rare events")
UNBIASED: dict[str, Estimator] = {"activity": ActivityPerturbation(), "rare events": RareEvents(0.03)}


def network(name: str) -> Snapshot:
    """4-6-6-3 with ReLU and 4 examples; for one output 3-4-1 with tanh and one example. Double precision."""
    one = "one output" in name
    sizes, n_examples = ([3, 4, 1], 1) if one else ([4, 6, 6, 3], 4)
    activation = torch.nn.Tanh if one else torch.nn.ReLU
    module = fga.networks.mlp(sizes, bias=False, seed=1, activation=activation, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(n_examples, sizes[0], generator=generator, dtype=torch.float64)
    targets = torch.randn(n_examples, sizes[-1], generator=generator, dtype=torch.float64)
    return fga.capture(module, torch.nn.functional.mse_loss, inputs, targets)


@dataclass(frozen=True)
class Draws:
    """Raw material of many samples: p, q (repeat, space, layer, guess), Gram matrices (repeat, space, layer, group,
    group), and, a tap each, the group means of s and e of `moments.wang2025`, (repeat, group, unit)."""

    inner_product: Array
    squared_length: Array
    gram: Array
    second_moments: list[Array]
    errors: list[Array]


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
                seconds.append(error.square().mean((2, 3)).numpy())
                errors.append(mean.mean(2).numpy())
    p, q, gram = (_with_all_layers(part) for part in (*scalars, torch.stack(grams, dim=2)))
    return Draws(p, q, gram, seconds, errors)


def _with_all_layers(part: Tensor) -> Array:
    array: Array = torch.cat([part, part.sum(2, keepdim=True)], dim=2).double().numpy()
    return array


def _dense(guesses: Any) -> tuple[Tensor, ...]:
    if isinstance(guesses, ActivationEstimates):
        return guesses.guesses
    pairs = zip(guesses.coefficients.T, guesses.directions, strict=True)
    return tuple(coefficient[:, None, None] * direction for coefficient, direction in pairs)


def _gram(means: Tensor) -> Tensor:
    flat = means.flatten(2)
    return flat @ flat.mT


def measured(draws: Draws, snapshot: Snapshot) -> dict[str, Estimate]:
    """Every reported quantity of every repeat, (repeat, space, layer); those of one space stand at the activations."""
    groups, n_guesses = draws.gram.shape[-1], draws.inner_product.shape[-1]
    of_guess = np.arange(n_guesses) // (n_guesses // groups)
    found = moments.quantities(
        draws.inner_product, draws.squared_length, draws.gram, of_guess, sampling.squared_gradients(snapshot)
    )
    shape = draws.inner_product.shape[:-1]
    for index, (second, error) in enumerate(zip(draws.second_moments, draws.errors, strict=True)):
        for name, estimate in moments.wang2025(second, error, np.full(groups, n_guesses / groups)).items():
            own = found.setdefault(name, replace(Estimate.missing(shape), wide=np.zeros(shape, dtype=bool)))
            for field in dataclasses.fields(Estimate):
                getattr(own, field.name)[:, 0, index] = getattr(estimate, field.name)
    return found


def coverage(name: str, repeats: int, n_guesses: int, seed: int) -> xr.Dataset:
    """How often each interval held the truth, and quantiles of z, over (quantity, space, layer).

    The truth is the closed form; where none is known, the mean of all repeats' values, known √repeats times better.
    """
    snapshot, estimator = network(name), ESTIMATORS[name]
    generator = torch.Generator().manual_seed(seed)
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
        truths = closed_forms(snapshot, estimator, name)
        numbers = estimator(snapshot, 1, torch.Generator().manual_seed(0)).numbers_per_guess()
        at_once = max(1, NUMBERS_AT_ONCE // (n_guesses * numbers))
        for start in range(0, repeats, at_once):
            draws = drawn(snapshot, estimator, min(at_once, repeats - start), n_guesses, generator)
            groups = draws.gram.shape[-1]
            for quantity, estimate in measured(draws, snapshot).items():
                score = np.full(estimate.value.shape, np.nan)
                if quantity == "squared_bias":
                    score = squared_norm(draws.gram, np.ones(groups)).score(truths[quantity])
                parts.setdefault(quantity, []).append((estimate, score))
    rows = [_counted(quantity, found, truths) for quantity, found in parts.items()]
    dataset = xr.concat(rows, dim="quantity").assign_coords(quantity=list(parts))
    return dataset.assign_coords(
        {schema.SPACE: list(schema.SPACES), schema.LAYER: [*snapshot.layers, schema.ALL_LAYERS], "level": LEVELS}
    )


def closed_forms(snapshot: Snapshot, estimator: Estimator, name: str) -> dict[str, Array]:
    """Truths over (space, layer), NaN where no closed form is known."""
    shape = (len(schema.SPACES), len(snapshot.taps) + 1)
    if isinstance(estimator, RareEvents):
        squares = sampling.squared_gradients(snapshot)
        kept = np.array([[np.nan], [1.0]]) * np.ones(shape)
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


def _counted(quantity: str, parts: list[tuple[Estimate, Array]], truths: dict[str, Array]) -> xr.Dataset:
    value, low, high = (
        np.concatenate([getattr(estimate, field) for estimate, _ in parts]) for field in ("value", "low", "high")
    )
    wide = np.concatenate([np.broadcast_to(estimate.wide, estimate.value.shape) for estimate, _ in parts])
    exact = truths[quantity]
    known = ~np.isnan(exact)
    reported = ~np.isnan(low)
    with np.errstate(invalid="ignore"):
        pooled = np.where(reported, value, 0.0).sum(0) / reported.sum(0)
    truth = np.where(known, exact, pooled)
    # What is zero by construction, as the part across a gradient of one number, is left with rounding errors of 1.
    margin = ROUNDING * np.maximum(np.abs(truth), float(quantity == "directional_bias"))
    # Where no repeat differs from another there is no chance, and nothing to calibrate.
    varies = reported.any(0) & (np.ptp(np.where(reported, value, truth), axis=0) > 2 * margin + 1e-30)
    estimate = Estimate(value, value, low, high)
    score = np.concatenate([score for _, score in parts])
    score = np.where(np.isnan(score), estimate.score(truth), score)
    score = np.where(reported & varies, score, np.nan)
    quantiles = np.full((len(LEVELS), *truth.shape), np.nan)
    quantiles[:, varies] = np.nanquantile(score[:, varies], LEVELS, axis=0)
    grid = (schema.SPACE, schema.LAYER)
    counts = {
        "above_truth": (low > truth + margin).sum(0),
        "below_truth": (high < truth - margin).sum(0),
        "missing": (~reported).sum(0),
        "said_wide": (wide & reported).sum(0),
        "repeats": np.full(truth.shape, len(value)),
    }
    variables: dict[str, tuple] = {key: (grid, np.where(varies, count, np.nan)) for key, count in counts.items()}
    variables |= {
        "truth": (grid, np.where(varies, truth, np.nan)),
        "truth_is_closed_form": (grid, known.astype(float)),
        "z_quantile": (("level", *grid), quantiles),
    }
    return xr.Dataset(variables)


def false_alarms(name: str, runs: int, alpha: float, max_guesses: int, seed: int) -> xr.Dataset:
    """An unbiased estimator's runs that are called biased; none may stop as unbiased, so that all looks are had."""
    snapshot = network("one output")
    verdicts = [
        fga.check_unbiased(UNBIASED[name], snapshot, alpha, 1e-9, max_guesses, seed=seed + run) for run in range(runs)
    ]
    outcomes = [one.outcome for one in verdicts]
    return xr.Dataset({"false_alarms": outcomes.count("biased"), "runs": runs} | _wrong_intervals(verdicts, 0.0))


def power(bias: float, runs: int, alpha: float, max_guesses: int, seed: int) -> xr.Dataset:
    """Guesses drawn until the bias is found, (run,); NaN where it is not."""
    snapshot = network("one output")
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
