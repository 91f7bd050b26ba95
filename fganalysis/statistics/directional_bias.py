"""The angle between the mean guess and the gradient, from the Gram matrix of the means of groups of guesses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.guess_scalars import group_means
from fganalysis.statistics.intervals import Array, Estimate, mean
from fganalysis.statistics.squared_norm import LEAST_GROUPS, SquaredNorm, mean_over_pairs, squared_norm

# Both are tuned by `python -m studies.calibration`. To tune them again, change them, run the study with `--out` a new
# folder, and read the rows of `directional_bias` on its page: no cell may be tight, and every wide cell must be marked
# wide. A larger CLEAR gives fewer intervals.
CLEAR = 5.0  # ⟨ḡ, g⟩ must be this many standard errors from zero: otherwise the mean guess has no known direction.
NEARLY_ALL = 0.9  # An interval that covers more than this share of the range from 0 to 1 is wide.


def directional_bias(gram: Array, sizes: Array, p: Array, group_of_guess: NDArray[np.int64], g2: Array) -> Estimate:
    """sin² = 1 − ⟨ḡ, g⟩²/(‖ḡ‖²‖g‖²) = tan²/(1 + tan²), with the interval of tan².

    tan = ‖ḡ⊥‖/c, where ḡ⊥ is the part of the mean guess across the gradient and c its component along the gradient.
    tan² is a squared norm, with the influence vectors (m_a⊥ − (m̄⊥/c)(c_a − c))/c of the groups a.

    NaN if c is less than 5 standard errors from zero. If noise makes the estimate of tan² negative, sin² is 0, because
    x/(1 + x) has a pole at −1, which estimates in many dimensions from few guesses come near. The interval is wide if
    it covers nearly all values from 0 to 1.

    Args:
        gram: ⟨m_a − g, m_b − g⟩, (…, group, group). sizes: guesses in each group, (group,). p: ⟨ĝ, g⟩, (…, guess).
        group_of_guess: (guess,). g2: ‖g‖², (…).

    Source: docs/mathematics.md#interval-of-the-directional-bias.
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
    """tan² of the angle between the mean guess and the gradient, and its law. Arguments as in `directional_bias`."""
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
