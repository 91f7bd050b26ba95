"""How often the intervals of `fganalysis.progress` hold the truth: of slope, curvature and best step along guesses.

The Hessian of these networks is written out, so that a product with it costs no pass, and their losses are evaluated
many at a time. Everything else is that of `fganalysis.progress`: pairs of guesses, pseudo-values and intervals.

What losses say is of the best step that the same guesses give, so each sample has a truth of its own: the mean of
`FRESH` other guesses at `STEPS` step sizes, between which it is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator
from fganalysis.measuring.curved_guesses import HALVES, without_itself
from fganalysis.measuring.network_curvature import of_network
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.predictions.arrays import NoClosedForm
from fganalysis.predictions.progress import NetworkCurvature, predict_progress
from fganalysis.results import schema
from fganalysis.statistics.efficiency import efficiency
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.progress import Curved, at_step, estimates
from fganalysis.statistics.rounding import DOUBLE
from studies.calibration.advice import counted_advice
from studies.calibration.counting import of_all_layers
from studies.calibration.estimators import ESTIMATORS, HARD, has_steps, network

Array = NDArray[np.float64]
AVERAGED = (1, 4, 32)  # Guesses whose mean is the step.
NUMBERS_AT_ONCE = 2**21  # Of guesses: another number gives other guesses.
FRESH, STEPS = 2**16, 12
FARTHEST = 4.0  # Times the median of the best steps, or below it: a sample with a step beyond is taken as without one.
OF_STEPS = ("slope_along", "mean_curvature")
OF_MEANS = ("curvature_along", "best_step", "expected_decrease", "curved_efficiency")
MOST_PRODUCTS = 2**20  # More than any prediction here takes, so that none is estimated.
WITH_STEPS = tuple(name for name in ESTIMATORS | HARD if has_steps(name))
AT_STEP = ("decrease_at_step", "curvature_at_step", "unseen_curvature")


def quantity_names() -> list[str]:
    """Those of one guess, then those of means, such as "best_step, mean of 4", then those by losses."""
    return [*OF_STEPS, *(_named(name, number) for name in OF_MEANS for number in AVERAGED), *AT_STEP]


def _named(name: str, averaged: int) -> str:
    return name if averaged == 1 else f"{name}, mean of {averaged}"


@dataclass(frozen=True)
class Drawn:
    """Samples of n guesses: curved, squared_length, and decrease and second_difference at the step, (repeat, guess).

    step: (repeat,), NaN where there is none.
    """

    curved: Curved
    squared_length: Array
    step: Array
    decrease: Array
    second_difference: Array


def losses(snapshot: Snapshot, moves: Tensor) -> Tensor:
    """L(θ + move) of an MLP without biases and with squared error, (…). moves: (…, weight)."""
    parts = moves.split([gradient.numel() for gradient in snapshot.weight_gradients], dim=-1)
    linear = [module for module in snapshot.network.modules() if isinstance(module, torch.nn.Linear)]
    others = [m for m in snapshot.network.modules() if not list(m.children()) and not isinstance(m, torch.nn.Linear)]
    values = snapshot.inputs.expand(*moves.shape[:-1], *snapshot.inputs.shape)
    for place, (module, part) in enumerate(zip(linear, parts, strict=True)):
        weights = module.weight.detach() + part.unflatten(-1, module.weight.shape)
        values = values @ weights.mT
        if place + 1 < len(linear):
            values = others[place](values)
    squares: Tensor = (values - snapshot.targets).square().mean((-2, -1))
    return squares


def drawn(snapshot: Snapshot, hessian: Tensor, estimator: Estimator, repeats: int, n: int, seed: int) -> Drawn:
    """``repeats`` samples of n guesses, (repeat, guess)."""
    generator = torch.Generator(snapshot.device).manual_seed(seed)
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients])
    halves = np.arange(n) % HALVES
    counts = np.array([(halves == half).sum() for half in range(HALVES)], dtype=float)
    slopes, forms, lengths, products, changes = [], [], [], [], []
    here = losses(snapshot, torch.zeros_like(gradient))
    at_once = max(1, NUMBERS_AT_ONCE // (n * len(gradient)))
    for start in range(0, repeats, at_once):
        batch = min(at_once, repeats - start)
        with torch.no_grad():
            guesses = estimator(snapshot, batch * n, generator).dense(snapshot)[1].unflatten(0, (batch, n))
            images = guesses @ hessian
            means = torch.stack([images[:, halves == half].mean(1) for half in range(HALVES)])
            slope, form = guesses @ gradient, (guesses * images).sum(-1)
            step = slope.mean(-1) / form.mean(-1)
            moved = step[:, None, None] * guesses
            ends = [losses(snapshot, sign * moved) - here for sign in (-1, 1)]
        slopes.append(slope.cpu().numpy())
        forms.append(form.cpu().numpy())
        lengths.append(guesses.square().sum(-1).cpu().numpy())
        products.append(torch.einsum("rnp,hrp->hrn", guesses, means).cpu().numpy())
        changes.append(torch.stack(ends).cpu().numpy())
    slopes_of_all, curvature, moved_losses = (
        np.concatenate(slopes),
        np.concatenate(forms),
        np.concatenate(changes, axis=1),
    )
    with_others, with_halves = without_itself(np.concatenate(products, axis=1), curvature, halves, counts)
    squared = float(gradient @ gradient)
    along = float(gradient @ hessian @ gradient)
    shape = np.ones(repeats)
    curved = Curved(slopes_of_all, curvature, with_others, with_halves, squared * shape, along * shape)
    level = slopes_of_all.mean(-1)
    downhill = (level > 0) & (curvature.mean(-1) > 0)
    steps = np.where(downhill, level / curvature.mean(-1), np.nan)
    return Drawn(curved, np.concatenate(lengths), steps, -moved_losses[0], moved_losses.sum(0) / steps[:, None] ** 2)


def counted_steps(name: str, repeats: int, n_guesses: int, seed: int, device: str) -> xr.Dataset:
    """How often each interval held the truth, over (quantity, space, layer), and the advice made of them, over advice.

    At the weights of all layers.
    """
    snapshot, estimator = network(name, device), (ESTIMATORS | HARD)[name]
    found, truths, raw = sampled(snapshot, estimator, repeats, n_guesses, seed)
    p, q, squared = raw.curved.slope, raw.squared_length, raw.curved.squared_gradient
    along, predicted = float(raw.curved.gradient_curvature[0]), fga.predict(snapshot, estimator)
    whole = predicted.sel({schema.SPACE: "weight", schema.LAYER: schema.ALL_LAYERS})
    known = {name: float(whole[name]) for name in ("relative_bias", "directional_bias")} | {
        "squared_gradient": float(squared[0]),
        "gradient_curvature": along,
        "gradient_step": float(squared[0]) / along if along > 0 else np.inf,
    }
    pooled = float(p.mean() ** 2 / (squared[0] * q.mean()))
    true_efficiency = float(whole["efficiency"]) if np.isfinite(whole["efficiency"]) else pooled
    of_one = efficiency(p, q, squared).of_few(n_guesses)
    return xr.merge(
        [of_all_layers(found, truths), counted_advice(found, truths, of_one, true_efficiency, known)],
        compat="no_conflicts",
    )


def sampled(
    snapshot: Snapshot, estimator: Estimator, repeats: int, n: int, seed: int
) -> tuple[dict[str, Estimate], dict[str, Array], Drawn]:
    """Estimates of every quantity, (repeat,), their truths, () or (repeat,), and what they are made of.

    Where no closed form is known, slope and curvatures are the means of all repeats, and the others follow from them.
    """
    hessian, of_net = _curvature(snapshot)
    raw = drawn(snapshot, hessian, estimator, repeats, n, seed)
    truths = exact(snapshot, estimator, raw.curved, of_net)
    found = estimates(raw.curved, AVERAGED, DOUBLE)
    by_name: dict[str, Estimate] = {quantity: found[quantity] for quantity in OF_STEPS}
    for quantity in OF_MEANS:
        for place, number in enumerate(AVERAGED):
            by_name[_named(quantity, number)] = _at(found[quantity], place)
    for quantity in by_name:
        truth = truths[quantity]
        if not np.isfinite(truth):  # No best step, so that nothing is there to be held.
            by_name[quantity] = Estimate.missing((repeats,))
        # A best step that is not finite is on no side of the truth.
        value = by_name[quantity].value
        by_name[quantity] = replace(by_name[quantity], value=np.where(np.isfinite(value), value, truth))
    by_losses, of_losses = _by_losses(snapshot, estimator, raw, truths, seed)
    return by_name | by_losses, truths | of_losses, raw


def _curvature(snapshot: Snapshot) -> tuple[Tensor, NetworkCurvature]:
    product = Curvature(snapshot, "hessian")
    hessian = product.products(torch.eye(product.n_weights, dtype=torch.float64, device=snapshot.device))
    return (hessian + hessian.T) / 2, of_network(snapshot, product, MOST_PRODUCTS, 0).curvature


def _by_losses(
    snapshot: Snapshot, estimator: Estimator, raw: Drawn, known: dict[str, Array], seed: int
) -> tuple[dict[str, Estimate], dict[str, Array]]:
    """What `at_step` estimates, and the truth at the step of each sample, (repeat,)."""
    repeats, slope, curvature = len(raw.step), float(known["slope_along"]), float(known["curvature_along"])
    with np.errstate(invalid="ignore"):
        from_median = np.abs(np.log(raw.step / np.nanmedian(raw.step)))
        usual = (from_median < np.log(FARTHEST)) & (curvature > 0)
    if usual.sum() < repeats / 2:
        return ({name: Estimate.missing((repeats,)) for name in AT_STEP}, dict.fromkeys(AT_STEP, np.zeros(())))
    step = np.where(usual, raw.step, np.median(raw.step[usual]))
    loss = np.full(repeats, float(snapshot.loss))
    found = at_step(raw.decrease, raw.second_difference, raw.curved.curvature, step, loss, DOUBLE)
    truths = _at_steps(snapshot, estimator, step, slope, curvature, seed)
    return {name: estimate.where(usual) for name, estimate in found.items()}, truths


def _at_steps(
    snapshot: Snapshot, estimator: Estimator, step: Array, slope: float, curvature: float, seed: int
) -> dict[str, Array]:
    """The truths at these steps, (repeat,). What is not quadratic alone is from other guesses, and adds an error."""
    grid = np.geomspace(step.min() / 1.001, step.max() * 1.001, STEPS)
    generator = torch.Generator(snapshot.device).manual_seed(seed + 1)
    gradient, product = _flat(snapshot), Curvature(snapshot, "hessian")
    hessian = product.products(torch.eye(len(gradient), dtype=torch.float64, device=snapshot.device))
    here, beyond, total = losses(snapshot, torch.zeros_like(gradient)), np.zeros((2, STEPS)), 0.0
    at_once = NUMBERS_AT_ONCE // len(gradient)
    with torch.no_grad():
        for start in range(0, FRESH, at_once):
            count = min(at_once, FRESH - start)
            guesses = estimator(snapshot, count, generator).dense(snapshot)[1]
            along, form = float((guesses @ gradient).sum()), float(((guesses @ hessian) * guesses).sum())
            total += form
            for place, eta in enumerate(grid):
                ends = [float((losses(snapshot, sign * eta * guesses) - here).sum()) for sign in (-1, 1)]
                beyond[0, place] += (-ends[0] - eta * along) / eta**2 + form / 2
                beyond[1, place] += sum(ends) / eta**2 - form
    decrease, bend, unseen = (
        CubicSpline(np.log(grid), on_grid)(np.log(step))
        for on_grid in (beyond[0] / FRESH, beyond[1] / FRESH, beyond[1] / total)
    )
    return {
        "decrease_at_step": step * slope + step**2 * (decrease - curvature / 2),
        "curvature_at_step": curvature + bend,
        "unseen_curvature": unseen,
    }


def _flat(snapshot: Snapshot) -> Tensor:
    return torch.cat([part.flatten() for part in snapshot.weight_gradients])


def _at(estimate: Estimate, place: int) -> Estimate:
    parts = {
        field: np.broadcast_to(getattr(estimate, field), estimate.value.shape)[place]
        for field in ("value", "se", "low", "high", "wide", "tail")
    }
    return replace(estimate, **parts)


def exact(snapshot: Snapshot, estimator: Estimator, raw: Curved, of_net: NetworkCurvature) -> dict[str, Array]:
    """The truths of `quantity_names` that take no losses, NaN where there is no best step."""
    try:
        theory = predict_progress(snapshot, estimator, of_net)
        slope, curvature, mean = theory.slope, float(theory.curvature[0]), theory.mean_curvature
    except NoClosedForm:
        slope, curvature, mean = (float(part.mean()) for part in (raw.slope, raw.curvature, raw.with_others))
    truths = {"slope_along": slope, "mean_curvature": mean}
    squared, along = float(raw.squared_gradient[0]), float(raw.gradient_curvature[0])
    for number in AVERAGED:
        level = curvature / number + (1 - 1 / number) * mean
        step = slope / level if level > 0 and slope > 0 else np.nan
        truths[_named("curvature_along", number)] = level
        truths[_named("best_step", number)] = step
        truths[_named("expected_decrease", number)] = step * slope / 2
        truths[_named("curved_efficiency", number)] = step * slope * along / squared**2 if along > 0 else np.nan
    return {name: np.asarray(value) for name, value in truths.items()}
