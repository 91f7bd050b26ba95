"""variance_parts(): the variance of a guess on a random part of the batch, measured in its two parts.

    tr Cov ĝ = E_S tr Cov(ĝ | S)  +  tr Cov E(ĝ | S)
               within, the guess     between, the minibatch

Two guesses on the same rows are independent given the rows. Let e and e' be their errors against the exact gradient.
The part within is E‖e − e'‖²/2. The part between is E⟨e, e'⟩ less the squared bias, which guesses on different rows
give.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import check_kind, check_whole
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.around.subsampled import Subsampled
from fganalysis.estimators.guesses import Sums
from fganalysis.measuring.sound_guesses import check_arguments
from fganalysis.statistics.intervals import VarianceParts, mean
from fganalysis.statistics.rounding import ROUNDING
from fganalysis.statistics.squared_norm import squared_norm
from fganalysis.statistics.variance import less_squared_bias

GROUPS = 32
Array = NDArray[np.float64]


def variance_parts(
    estimator: Subsampled, snapshot: Snapshot, n_draws: int, generator: torch.Generator
) -> VarianceParts:
    """Measures both parts of tr Cov ĝ, with their 95 % intervals, (space, layer).

    Args:
        n_draws: number of draws of rows; each has two guesses.

    Raises:
        ValueError: an estimator that is not a `Subsampled`, no snapshot, fewer than 32 draws, no generator or a
            generator of another device, more rows than the batch has, or guesses that are not finite.
    """
    check_kind("estimator", estimator, Subsampled, "a fganalysis.estimators.Subsampled")
    check_arguments(snapshot, 0)
    check_whole("n_draws", n_draws, GROUPS)
    check_kind("generator", generator, torch.Generator, "a torch.Generator")
    if generator.device.type != snapshot.device.type:
        raise ValueError(f"generator must be on {snapshot.device}, as the snapshot is, got {generator.device}")
    within, products = [], []
    totals: list[Sums] = []
    with torch.no_grad(), full_precision(snapshot):
        for index, rows in enumerate(estimator.draw_rows(snapshot, n_draws, generator)):
            pair = estimator.guesses_on(snapshot, rows, 2, generator)
            both, first = pair.total(), pair.first(1).total()
            second = tuple(total - part for total, part in zip(both, first, strict=True))
            gram = _with_all_layers(pair.error_grams(snapshot, [first, second]))
            if not np.isfinite(gram[1]).all():
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
    squares = np.stack(within, -1).mean(-1) + np.abs(np.stack(products, -1).mean(-1)) + squared_gradients(snapshot)
    rounding = 2 * ROUNDING * float(torch.finfo(snapshot.dtype).eps) * squares
    parts = (part.of_few(n_draws).of_rounding(rounding) for part in (mean(np.stack(within, -1)), between))
    return VarianceParts(*(part.within(0.0, np.inf) for part in parts))


def _with_all_layers(grams: Tensor) -> Array:
    """Gram matrices (space, layer, mean, mean), with their sum over layers appended."""
    array: Array = torch.cat([grams, grams.sum(1, keepdim=True)], dim=1).double().cpu().numpy()
    return array
