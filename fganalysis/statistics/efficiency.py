"""Progress of a step along a guess and the best size of that step: ratios of means over guesses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fganalysis.statistics.intervals import Array, Estimate, shape, skewed
from fganalysis.statistics.pareto_tail import tail_shape
from fganalysis.statistics.squared_norm import SquaredNorm

NEAR = 4.0  # Standard errors from zero within which a square has the law of a squared norm.
ROOM = 3.0  # Guesses like the largest met that the interval of an efficiency leaves room for.
NOTABLE = 0.1  # Of an interval's length: by what such room must widen it to be called wide.


def efficiency(p: Array, q: Array, g2: Array) -> Estimate:
    """ρ² = (E p)²/(‖g‖² E q), the square of the mean corrected by its variance; its interval is that of ρ, squared.

    With p = p̄ + ‖g‖√q̄ u and q = q̄(1 + v), ρ has the influence values u − ρv/2, and the second derivatives −½ by (u,
    v) and ¾ρ by (v, v). Near zero, ρ² is a squared norm in one dimension and has that interval. The tail of q is what
    few guesses have not met, and the noise of p hides it: the lower bound is at most what three more guesses as long as
    the longest would leave.
    """
    n = p.shape[-1]
    first, second = p.mean(-1, keepdims=True), q.mean(-1, keepdims=True)
    length = np.sqrt(g2[..., None] * np.where(second > 0, second, np.nan))
    u, v, rho = (p - first) / length, q * g2[..., None] / length**2 - 1, (first / length)[..., 0]
    influence = u - rho[..., None] * v / 2
    along_u, along_v = (influence * u).mean(-1), (influence * v).mean(-1)
    cubed = influence.std(-1) ** 3
    bend = np.divide(0.75 * rho * along_v**2 - along_u * along_v, cubed, out=np.zeros_like(rho), where=cubed > 0)
    found = skewed(rho, shape(influence), (0.375 * rho * (v**2).mean(-1) - 0.5 * (u * v).mean(-1)) / n, bend)
    squared_error = found.se**2
    near = SquaredNorm.of_a_square(rho**2 - squared_error, squared_error, n - 1)
    low, high = near.interval()
    squares = np.sort(np.stack([found.low**2, found.high**2]), axis=0)
    apart = np.abs(rho) > NEAR * found.se
    value = rho**2 - (u**2).mean(-1) / max(n - 1, 1)
    lower = np.minimum(squares[0], value / (1 + ROOM * v.max(-1) / n))
    wide = ~apart | (lower < squares[0] - NOTABLE * (squares[1] - squares[0]))
    low, high = np.where(apart, lower, low), np.where(apart, squares[1], high)
    # 2ρ se is zero where ρ happens to be, and the square of what is not known to be zero is not known to be.
    se = np.where(apart, 2 * np.abs(rho) * found.se, near.spread(near.value))
    return Estimate(value, se, low, high, wide, tail_shape(influence))


def best_scale(p: Array, q: Array) -> Estimate:
    """E p / E q with its influence values (p − c q)/E q."""
    second = q.mean(-1, keepdims=True)
    scale = np.divide(p.mean(-1, keepdims=True), second, out=np.full_like(second, np.nan), where=second > 0)
    influence = np.divide(p - scale * q, second, out=np.full_like(p, np.nan), where=second > 0)
    return replace(skewed(scale[..., 0], shape(influence)), tail=tail_shape(influence))
