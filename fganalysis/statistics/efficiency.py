"""Progress of a step along a guess and the best size of that step: ratios of means over guesses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fganalysis.statistics.intervals import Array, Estimate, shape, skewed
from fganalysis.statistics.pareto_tail import tail_shape
from fganalysis.statistics.squared_norm import SquaredNorm

# These three are tuned by `python -m studies.calibration`. To tune them again, change them, run the study with `--out`
# a new folder, and read the rows of `efficiency` on its page: outside the settings with heavy tails no cell may be
# tight, and every wide cell must be marked wide. A larger ROOM lengthens intervals; a smaller NOTABLE marks more of
# them.
NEAR = 4.0  # Within this many standard errors of zero, ρ² has the law of a squared norm.
ROOM = 3.0  # The interval allows for this many further guesses as long as the longest.
NOTABLE = 0.1  # An interval is wide if this room widens it by more than this share of its length.


def efficiency(p: Array, q: Array, g2: Array) -> Estimate:
    """ρ² = (E p)²/(‖g‖² E q), with the interval of ρ, squared. The value is corrected for the bias of a square.

    With p = p̄ + ‖g‖√q̄ u and q = q̄(1 + v), ρ has the influence values u − ρv/2, and the second derivatives −½ by (u,
    v) and ¾ρ by (v, v). Near zero, ρ² is a squared norm in one dimension and has the interval of such a norm.

    Few guesses show too little of the tail of q, and the noise of p hides this. So the lower bound is at most the value
    that three further guesses as long as the longest would give.

    Args:
        p, q: ⟨ĝ, g⟩ and ‖ĝ‖², (…, guess). g2: ‖g‖², (…), NaN where it is zero.

    Source: docs/mathematics.md#interval-of-a-ratio.
    """
    n = p.shape[-1]
    first, second = p.mean(-1, keepdims=True), q.mean(-1, keepdims=True)
    length = np.sqrt(g2[..., None] * np.where(second > 0, second, np.nan))
    u, v, rho = (p - first) / length, q * g2[..., None] / length**2 - 1, (first / length)[..., 0]
    influence = u - rho[..., None] * v / 2
    along_u, along_v = (influence * u).mean(-1), (influence * v).mean(-1)
    cubed = influence.std(-1) ** 3
    bend = np.divide(0.75 * rho * along_v**2 - along_u * along_v, cubed, out=np.zeros_like(rho), where=cubed > 0)
    of_rho = skewed(rho, shape(influence), (0.375 * rho * (v**2).mean(-1) - 0.5 * (u * v).mean(-1)) / n, bend)
    squared_error = of_rho.se**2
    near = SquaredNorm.of_a_square(rho**2 - squared_error, squared_error, n - 1)
    low, high = near.interval()
    squares = np.sort(np.stack([of_rho.low**2, of_rho.high**2]), axis=0)
    apart = np.abs(rho) > NEAR * of_rho.se
    value = rho**2 - (u**2).mean(-1) / max(n - 1, 1)
    lower = np.minimum(squares[0], value / (1 + ROOM * v.max(-1) / n))
    wide = ~apart | (lower < squares[0] - NOTABLE * (squares[1] - squares[0]))
    low, high = np.where(apart, lower, low), np.where(apart, squares[1], high)
    # Near zero 2ρ·SE would be far too small: it is zero where the estimate of ρ happens to be zero.
    se = np.where(apart, 2 * np.abs(rho) * of_rho.se, near.spread(near.value))
    return Estimate(value, se, low, high, wide, tail_shape(influence))


def best_scale(p: Array, q: Array) -> Estimate:
    """c = E p/E q, with the influence values (p − c q)/E q. p, q: ⟨ĝ, g⟩ and ‖ĝ‖², (…, guess)."""
    second = q.mean(-1, keepdims=True)
    scale = np.divide(p.mean(-1, keepdims=True), second, out=np.full_like(second, np.nan), where=second > 0)
    influence = np.divide(p - scale * q, second, out=np.full_like(p, np.nan), where=second > 0)
    return replace(skewed(scale[..., 0], shape(influence)), tail=tail_shape(influence))
