"""The bias and the variance of Wang et al. 2025 as they are sampled: what is kept of the guesses, and the estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.precision import LONGEST, SHORTEST
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, Sums
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
    if guess.device.type != "cpu":  # There the sum in double precision takes less than to ask for the largest.
        return guess.double().square().sum((0, 1))
    squares = guess.square().sum((0, 1))
    if guess.dtype == torch.float64 or SHORTEST**2 <= float(squares.max()) <= LONGEST**2:
        return squares.double()
    by_guess = [single.double().square().sum(0) for single in guess]
    return torch.stack(by_guess).sum(0)


def estimates(snapshot: Snapshot, groups: Groups) -> dict[str, Estimate]:
    """Both metrics, (layer,); NaN for all layers together."""
    layers = [_of_layer(snapshot, groups, layer) for layer in snapshot.weights]
    known = next((layer for layer in layers if layer is not None), {})
    return {
        name: _stacked([None if layer is None else layer[name] for layer in layers], groups.estimates[TAIL_OF[name]])
        for name in known
    }


def _of_layer(snapshot: Snapshot, groups: Groups, layer: Layer) -> dict[str, Estimate] | None:
    """Both metrics of a layer with a row an example, of which they are means; None of another."""
    if len(layer.taps) != 1:
        return None
    index = layer.taps[0]
    owners, gradient = snapshot.taps[index].owners, snapshot.gradients[index]
    if owners is None or not owners.is_plain:
        return None
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
    return bias_and_variance(moment, error, groups.sizes, norm, precision)


def _stacked(layers: Sequence[Estimate | None], alike: Estimate) -> Estimate:
    """The layers' estimates, all together NaN, with the tail of ``alike`` at the activations."""

    def part(layer: Estimate | None, name: str) -> object:
        return getattr(layer, name) if layer is not None else (False if name == "wide" else np.nan)

    numbers = {
        name: np.array([*(part(layer, name) for layer in layers), np.nan]) for name in ("value", "se", "low", "high")
    }
    tail = np.broadcast_to(alike.tail, np.shape(alike.value))[0]
    wide = np.array([*(part(layer, "wide") for layer in layers), False], dtype=bool)
    return replace(Estimate(**numbers), wide=wide, tail=np.array(tail, np.float64))
