"""The bias and the variance of Wang et al. 2025 with their intervals, from sums over groups: NumPy arrays only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fganalysis.statistics.efficiency import NOTABLE
from fganalysis.statistics.intervals import FEW, Array, Estimate, power_of_two, shape, skewed
from fganalysis.statistics.rounding import DOUBLE, ROUNDING
from fganalysis.statistics.squared_norm import LEAST_GROUPS, root, squared_norm
from fganalysis.statistics.variance import NOT_KNOWN

# Tuned by `python -m studies.calibration`. To tune it again, change it, run the study with `--out` a new folder, and
# read the rows of `wang2025_variance` on its page: no cell may be tight, and every wide cell must be marked wide.
ROOM_IN_GROUPS = 6.0  # The interval of the variance allows for this many further groups like the noisiest one.


def bias_and_variance(
    second_moment: Array, error: Array, sizes: Array, gradient_norm: Array | float = 0.0, precision: float = DOUBLE
) -> dict[str, Estimate]:
    """Both metrics of one layer: ‖E e‖, and ‖E s − (E e)²‖, squares and difference by unit.

    Args:
        second_moment, error: means over the guesses of a group, and over examples, of s = (ĝ_b − g_b)² and
            e = ĝ_b − g_b, (…, group, unit). sizes: guesses in each group, (group,).
        gradient_norm: root of the mean over examples of ‖g_b‖², (…). precision: that of the data type of the guesses.
            Both serve to bound the rounding errors of differences from the gradient.
    """
    length = power_of_two(np.sqrt(np.abs(second_moment).max((-2, -1))))
    error, second_moment = error / length[..., None, None], second_moment / length[..., None, None] ** 2
    bias = root(squared_norm(error @ error.swapaxes(-1, -2), sizes).estimate())
    variance = _norm_of_variance(second_moment, error, sizes, bias.low)
    norm = gradient_norm / length
    rounding = ROUNDING * precision * norm
    parts = {"wang2025_bias": (bias, rounding, length), "wang2025_variance": (variance, rounding * norm, length**2)}
    n_guesses = int(sizes.sum())
    return {
        # Of few guesses, norms are widened by twice as much as means.
        name: estimate.of_few(n_guesses, 2 * FEW).of_rounding(of_rounding).within(0.0, np.inf).scaled(unit)
        for name, (estimate, of_rounding, unit) in parts.items()
    }


def _norm_of_variance(second_moment: Array, error: Array, sizes: Array, least_bias: Array) -> Estimate:
    """‖E s − (E e)²‖ with the influence of every group; NaN for fewer than 4 groups.

    The interval is wide in two cases: if further groups like the noisiest one would make it notably longer, and if much
    of the variation comes from the product of the error and its mean while the mean may be zero.
    """
    groups = len(sizes)
    if groups < LEAST_GROUPS:
        return Estimate.missing(second_moment.shape[:-2])
    weights = (sizes / sizes.sum())[:, None]
    mean_error = (weights * error).sum(-2, keepdims=True)
    vector = (weights * second_moment).sum(-2) - mean_error[..., 0, :] ** 2
    value = np.linalg.norm(vector, axis=-1)
    length = np.where(value > 0, value, 1.0)
    # The derivative of E s − (E e)², unit by unit, and its part along the vector.
    parts = second_moment - 2 * mean_error * error
    parts = parts - parts.mean(-2, keepdims=True)
    direction = (vector / length[..., None])[..., None, :]
    influence = (parts * direction).sum(-1)
    of_error = (2 * mean_error * (error - error.mean(-2, keepdims=True)) * direction).sum(-1)
    not_known = (of_error**2).sum(-1) > NOT_KNOWN * (influence**2).sum(-1)
    # What is across the vector makes it longer: ‖v + ξ‖ ≈ ‖v‖ + ξ∥ + ‖ξ⊥‖²/2‖v‖.
    across = (parts**2).sum((-2, -1)) - (influence**2).sum(-1)
    of_norm = skewed(value, shape(influence), bias=across / (groups * (groups - 1)) / (2 * length))
    higher = value + ROOM_IN_GROUPS * influence.max(-1) / groups
    wide = higher > of_norm.high + NOTABLE * (of_norm.high - of_norm.low)
    wide = np.asarray(wide | (not_known & (least_bias <= 0)))
    return replace(of_norm, high=np.maximum(of_norm.high, higher), wide=wide)
