"""The angle between the mean guess and the gradient, from the Gram matrix of the means of groups of guesses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.guess_scalars import group_means
from fganalysis.statistics.intervals import Array, Estimate, mean
from fganalysis.statistics.squared_norm import LEAST_GROUPS, SquaredNorm, mean_over_pairs, squared_norm

CLEAR = 5.0  # Standard errors that the mean guess must have along the gradient before it has a direction.
NEARLY_ALL = 0.9  # Of the range from 0 to 1: an interval that leaves out no more says next to nothing.


def directional_bias(gram: Array, sizes: Array, p: Array, group_of_guess: NDArray[np.int64], g2: Array) -> Estimate:
    """sin² = 1 − ⟨ḡ, g⟩²/(‖ḡ‖²‖g‖²) = tan²/(1 + tan²), the squared tangent being the squared norm of the mean guess
    across the gradient, over its component along it, c: influence vectors (m_a⊥ − (m̄⊥/c)(c_a − c))/c.

    NaN where c is less than 5 of its standard errors. Where noise makes the estimate of tan² negative, sin² is 0, as a
    bias is: x/(1 + x) has a pole at −1, which many dimensions and few guesses come near. Wide where hardly a value
    between 0 and 1 is left out.
    """
    if gram.shape[-1] < LEAST_GROUPS:
        return Estimate.missing(p.shape[:-1])
    estimate = squared_tangent(gram, sizes, p, group_of_guess, g2).estimate()
    squared = np.maximum(estimate.value, 0.0)
    value, low, high = (bound / (1 + bound) for bound in (squared, estimate.low, estimate.high))
    return Estimate(
        value, estimate.se / (1 + squared) ** 2, low, high, np.asarray(estimate.wide | (high - low > NEARLY_ALL))
    )


def squared_tangent(gram: Array, sizes: Array, p: Array, group_of_guess: NDArray[np.int64], g2: Array) -> SquaredNorm:
    """tan² of the mean guess to the gradient, and its law: see `directional_bias`."""
    groups = gram.shape[-1]
    length = np.sqrt(g2)[..., None]
    weights = sizes / sizes.sum()
    component = group_means(p, group_of_guess, groups) / length
    whole = gram + length[..., None] * (component[..., :, None] + component[..., None, :]) - length[..., None] ** 2
    across = whole - component[..., :, None] * component[..., None, :]
    along = mean(p / length)
    clear = np.abs(along.value) > CLEAR * along.se
    centre = np.where(clear, along.value, np.nan)[..., None]
    deviation = component - centre
    overlap = (across @ weights) / centre
    tangent = (overlap @ weights)[..., None, None] / centre[..., None]
    influence = (
        across
        - deviation[..., :, None] * overlap[..., None, :]
        - deviation[..., None, :] * overlap[..., :, None]
        + deviation[..., :, None] * deviation[..., None, :] * tangent
    ) / centre[..., None] ** 2
    unbiased = mean_over_pairs(across, sizes) / (centre[..., 0] ** 2 - along.se**2)
    return squared_norm(influence, sizes).moved(unbiased)
