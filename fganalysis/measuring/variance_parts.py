"""variance_parts(): the variance of a guess on a random part of the batch, measured in its two parts.

    tr Cov ĝ = E_S tr Cov(ĝ | S)  +  tr Cov E(ĝ | S)
               within, the guess     between, the minibatch

Two guesses on the same rows are independent given the rows. Let e and e' be their errors against the exact gradient.
The part within is E‖e − e'‖²/2. The part between is E⟨e, e'⟩ less the squared bias, which guesses on different rows
give.

Without a network, each call of a draw with n = 2 is one minibatch, or whatever else two guesses of one call share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import check_kind, check_whole, described
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.around.subsampled import Subsampled
from fganalysis.estimators.guesses import Estimates, Sums
from fganalysis.measuring.own_draws import DrawFunction, Draws
from fganalysis.measuring.truth import Truth
from fganalysis.statistics.intervals import VarianceParts, mean
from fganalysis.statistics.rounding import ROUNDING
from fganalysis.statistics.squared_norm import squared_norm
from fganalysis.statistics.variance import less_squared_bias

GROUPS = 32
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of guesses that share a draw of rows. squared_gradient: exact ‖g‖², (space, layer), "all" last."""

    squared_gradient: Array
    of_draws: Iterator[Estimates]


@singledispatch
def pairs_on(reference: object, estimator: Any, n_draws: int, generator: torch.Generator) -> Pairs:
    """Pairs of an estimator's guesses. Raises ValueError for what is no snapshot and no truth, or for no estimator."""
    raise ValueError(f"snapshot must be what fga.capture or fga.truth returns, got {described(reference)}")


@pairs_on.register
def _(reference: Snapshot, estimator: Any, n_draws: int, generator: torch.Generator) -> Pairs:
    check_kind("estimator", estimator, Subsampled, "a fganalysis.estimators.Subsampled")
    all_rows = estimator.draw_rows(reference, n_draws, generator)
    pairs = (estimator.guesses_on(reference, rows, 2, generator) for rows in all_rows)
    return Pairs(squared_gradients(reference), pairs)


@pairs_on.register
def _(reference: Truth, estimator: Any, n_draws: int, generator: torch.Generator) -> Pairs:
    draws = Draws(estimator, reference)
    pairs = (draws(reference, 2, generator) for _ in range(n_draws))
    return Pairs(reference.squared_gradients(), pairs)


def variance_parts(
    estimator: Subsampled | DrawFunction, snapshot: Snapshot | Truth, n_draws: int, generator: torch.Generator
) -> VarianceParts:
    """Measures both parts of tr Cov ĝ, with their 95 % intervals, (space, layer).

    Args:
        estimator: a `Subsampled`; with a `Truth`, a draw as in `fganalysis.measure` that makes several guesses a call.
            What two guesses of one call share, as a minibatch, is then the part between.
        snapshot: from `capture` or `fganalysis.truth`.
        n_draws: number of draws of rows; each has two guesses.
        generator: torch's, which seeds those of NumPy where a draw takes these.

    Raises:
        ValueError: an estimator that is not a `Subsampled`, no snapshot, fewer than 32 draws, no generator or a
            generator of another device, more rows than the batch has, or guesses that are not finite; for draws as
            `fganalysis.measure`.
    """
    check_kind("snapshot", snapshot, (Snapshot, Truth), "what fga.capture or fga.truth returns")
    check_whole("n_draws", n_draws, GROUPS)
    check_kind("generator", generator, torch.Generator, "a torch.Generator")
    if generator.device.type != snapshot.device.type:
        raise ValueError(f"generator must be on {snapshot.device}, as the snapshot is, got {generator.device}")
    within, products = [], []
    totals: list[Sums] = []
    with torch.no_grad(), full_precision(snapshot):
        pairs = pairs_on(snapshot, estimator, n_draws, generator)
        for index, pair in enumerate(pairs.of_draws):
            both, first = pair.total(), pair.first(1).total()
            second = tuple(total - part for total, part in zip(both, first, strict=True))
            gram = _with_all_layers(pair.error_grams(snapshot, [first, second]))
            if not np.isfinite(gram[-1]).all():
                raise ValueError("the estimator made a guess that is NaN, infinite or too long to square")
            products.append(gram[..., 0, 1])
            within.append((gram[..., 0, 0] + gram[..., 1, 1]) / 2 - gram[..., 0, 1])
            if index < GROUPS:
                totals.append(both)
            else:
                totals[index % GROUPS] = tuple(a + b for a, b in zip(totals[index % GROUPS], both, strict=True))
        group_of_draw = np.arange(n_draws) % GROUPS
        sizes = 2 * np.bincount(group_of_draw).astype(np.float64)
        means = [tuple(t / float(size) for t in total) for total, size in zip(totals, sizes, strict=True)]
        gram = _with_all_layers(pair.error_grams(snapshot, means))
    between = less_squared_bias(np.stack(products, -1), squared_norm(gram, sizes), gram, group_of_draw)
    # Both parts are at least 0, and are differences of squared errors.
    squares = np.stack(within, -1).mean(-1) + np.abs(np.stack(products, -1).mean(-1)) + pairs.squared_gradient
    rounding = 2 * ROUNDING * float(torch.finfo(snapshot.dtype).eps) * squares
    parts = (part.of_few(n_draws).of_rounding(rounding) for part in (mean(np.stack(within, -1)), between))
    return VarianceParts(*(part.within(0.0, np.inf) for part in parts))


def _with_all_layers(grams: Tensor) -> Array:
    """Gram matrices (space, layer, mean, mean), with their sum over layers appended."""
    array: Array = torch.cat([grams, grams.sum(1, keepdim=True)], dim=1).double().cpu().numpy()
    return array
