"""The bias and the variance of Wang et al. 2025 as they are sampled: what is kept of the guesses, and the estimates."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import LONGEST, SHORTEST, ActivationEstimates, Estimates, Sums
from fganalysis.metrics import Groups
from fganalysis.papers.wang2025.intervals import bias_and_variance
from fganalysis.statistics.intervals import Estimate

# Of the two only groups are kept, so the guesses' errors say whether their tails are heavy.
TAIL_OF = {"wang2025_bias": "bias", "wang2025_variance": "mse"}


def keep(snapshot: Snapshot, guesses: Estimates) -> Sums:
    """Sum over guesses and examples of squared activation guesses, (unit,) a tap; nothing of weight guesses."""
    if not isinstance(guesses, ActivationEstimates):
        return ()
    return tuple(squares_by_unit(guess) for guess in guesses.guesses)


def squares_by_unit(guess: Tensor) -> Tensor:
    """Σ ĝ² over guesses and examples, (unit,), in double precision."""
    squares = guess.square().sum((0, 1))
    if guess.dtype == torch.float64 or SHORTEST**2 <= float(squares.max()) <= LONGEST**2:
        return squares.double()
    by_guess = [single.double().square().sum(0) for single in guess]
    return torch.stack(by_guess).sum(0)


def estimates(snapshot: Snapshot, groups: Groups) -> dict[str, Estimate]:
    """Both metrics, (layer,); NaN for all layers together."""
    layers = []
    for index, gradient in enumerate(snapshot.gradients):
        exact = gradient.double()
        exact_mean, exact_squares = exact.mean(0), exact.square().sum(0)
        errors, second = [], []
        for mean, total, size in zip(groups.means, groups.kept, groups.sizes, strict=True):
            mean_guess = mean[index].double()
            errors.append(mean_guess.mean(0).sub_(exact_mean))
            cross = (mean_guess * exact).sum(0)
            second.append((total[index] / size - 2 * cross + exact_squares) / snapshot.n_examples)
        moment, error = (torch.stack(rows).cpu().numpy() for rows in (second, errors))
        norm = float(exact.square().sum(1).mean().sqrt())
        precision = float(torch.finfo(gradient.dtype).eps)
        layers.append(bias_and_variance(moment, error, groups.sizes, norm, precision))
    names = layers[0]
    return {name: _stacked([layer[name] for layer in layers], groups.estimates[TAIL_OF[name]]) for name in names}


def _stacked(layers: list[Estimate], alike: Estimate) -> Estimate:
    """The layers' estimates, all together NaN, with the tail of ``alike`` at the activations."""
    parts = {field.name: [getattr(layer, field.name) for layer in layers] for field in fields(Estimate)}
    numbers = {name: np.array([*parts[name], np.nan]) for name in ("value", "se", "low", "high")}
    tail = np.broadcast_to(alike.tail, np.shape(alike.value))[0]
    return replace(Estimate(**numbers), wide=np.array([*parts["wide"], False]), tail=np.array(tail, np.float64))
