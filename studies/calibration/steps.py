"""How often the intervals of `fganalysis.progress` hold the truth: of slope, curvature and best step along guesses.

The Hessian of these networks is written out, so that a product with it costs no pass. Everything else is that of
`fganalysis.progress`: pairs of guesses, pseudo-values and intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator
from fganalysis.measuring.curved_guesses import HALVES, without_itself
from fganalysis.measuring.network_curvature import of_network
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.predictions.progress import NetworkCurvature, predict_progress
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.progress import Curved, estimates
from fganalysis.statistics.rounding import DOUBLE

Array = NDArray[np.float64]
AVERAGED = (1, 4, 32)  # Guesses whose mean is the step.
GUESSES_AT_ONCE = 2**15  # Drawn: another number gives other guesses.
OF_STEPS = ("slope_along", "mean_curvature")
OF_MEANS = ("curvature_along", "best_step", "expected_decrease", "curved_efficiency")


def quantity_names() -> list[str]:
    """Those of one guess, then those of means, such as "best_step, mean of 4"."""
    return [*OF_STEPS, *(_named(name, number) for name in OF_MEANS for number in AVERAGED)]


def _named(name: str, averaged: int) -> str:
    return name if averaged == 1 else f"{name}, mean of {averaged}"


def drawn(snapshot: Snapshot, hessian: Tensor, estimator: Estimator, repeats: int, n: int, seed: int) -> Curved:
    """``repeats`` samples of n guesses, (repeat, guess)."""
    generator = torch.Generator(snapshot.device).manual_seed(seed)
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients])
    halves = np.arange(n) % HALVES
    counts = np.array([(halves == half).sum() for half in range(HALVES)], dtype=float)
    slopes, forms, products = [], [], []
    at_once = max(1, GUESSES_AT_ONCE // n)
    for start in range(0, repeats, at_once):
        batch = min(at_once, repeats - start)
        with torch.no_grad():
            guesses = estimator(snapshot, batch * n, generator).dense(snapshot)[1].unflatten(0, (batch, n))
        images = guesses @ hessian
        means = torch.stack([images[:, halves == half].mean(1) for half in range(HALVES)])
        slopes.append((guesses @ gradient).cpu().numpy())
        forms.append((guesses * images).sum(-1).cpu().numpy())
        products.append(torch.einsum("rnp,hrp->hrn", guesses, means).cpu().numpy())
    curvature = np.concatenate(forms)
    with_others, with_halves = without_itself(np.concatenate(products, axis=1), curvature, halves, counts)
    squared = float(gradient @ gradient)
    along = float(gradient @ hessian @ gradient)
    shape = np.ones(repeats)
    return Curved(np.concatenate(slopes), curvature, with_others, with_halves, squared * shape, along * shape)


def sampled(
    snapshot: Snapshot, estimator: Estimator, repeats: int, n: int, seed: int
) -> tuple[dict[str, Estimate], xr.Dataset]:
    """Estimates of every quantity, (repeat,), and their truths, with whether each is a closed form.

    Where no closed form is known, slope and curvatures are the means of all repeats, and the others follow from them.
    """
    product = Curvature(snapshot, "hessian")
    axes = torch.eye(product.n_weights, dtype=torch.float64, device=snapshot.device)
    hessian = product.products(axes)
    raw = drawn(snapshot, (hessian + hessian.T) / 2, estimator, repeats, n, seed)
    of_net = of_network(snapshot, product, product.n_weights, 0).curvature
    truths, known = _truths(snapshot, estimator, raw, of_net)
    found = estimates(raw, AVERAGED, DOUBLE)
    by_name: dict[str, Estimate] = {quantity: found[quantity] for quantity in OF_STEPS}
    for quantity in OF_MEANS:
        for place, number in enumerate(AVERAGED):
            by_name[_named(quantity, number)] = _at(found[quantity], place)
    exact = {quantity: np.asarray(truths[quantity]) for quantity in by_name}
    for quantity, truth in exact.items():
        if not np.isfinite(truth):  # No best step, so that nothing is there to be held.
            by_name[quantity] = Estimate.missing((repeats,))
    return by_name, xr.Dataset({name: ((), value) for name, value in exact.items()}, attrs={"known": int(known)})


def _at(estimate: Estimate, place: int) -> Estimate:
    parts = {
        field: np.broadcast_to(getattr(estimate, field), estimate.value.shape)[place]
        for field in ("value", "se", "low", "high", "wide", "tail")
    }
    return replace(estimate, **parts)


def _truths(
    snapshot: Snapshot, estimator: Estimator, raw: Curved, of_net: NetworkCurvature
) -> tuple[dict[str, float], bool]:
    theory = predict_progress(snapshot, estimator, of_net)
    slope, curvature, mean = (float(part.mean()) for part in (raw.slope, raw.curvature, raw.with_others))
    if theory is not None:
        slope, curvature, mean = theory.slope, float(theory.curvature[0]), theory.mean_curvature
    truths = {"slope_along": slope, "mean_curvature": mean}
    squared, along = float(raw.squared_gradient[0]), float(raw.gradient_curvature[0])
    for number in AVERAGED:
        level = curvature / number + (1 - 1 / number) * mean
        step = slope / level if level > 0 and slope > 0 else np.nan
        truths[_named("curvature_along", number)] = level
        truths[_named("best_step", number)] = step
        truths[_named("expected_decrease", number)] = step * slope / 2
        truths[_named("curved_efficiency", number)] = step * slope * along / squared**2 if along > 0 else np.nan
    return truths, theory is not None


def on_the_grid(values: Array, layers: Sequence[str]) -> Array:
    """(…) → (…, space, layer), at the weights of all layers; NaN elsewhere."""
    grid = np.full((*values.shape, len(schema.SPACES), len(layers)), np.nan)
    grid[..., schema.SPACES.index("weight"), -1] = values
    return grid
