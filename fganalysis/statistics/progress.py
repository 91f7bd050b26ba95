"""Step size, decrease and curved efficiency from per-guess slopes and curvatures, with their 95 % intervals.

Raw material, of one estimator: the slope p_i = ⟨ĝ_i, g⟩, the curvature c_i = ĝ_iᵀHĝ_i and the product with the other
guesses u_i = ĝ_iᵀHḡ_−i of every guess, ḡ_−i being the mean of all guesses but i; and of the network ‖g‖² and gᵀHg.

    C = mean of c → E ĝᵀHĝ            U = mean of u → ḡᵀHḡ: the U-statistic over pairs of guesses, unbiased
    C_m = C/m + (1 − 1/m) U           the curvature along the mean of m guesses

p̄ is a mean, U a mean over pairs. The jackknife's pseudo-values of C_m are d_i = c_i/m + (1 − 1/m)(2 u_i − U): their
mean is C_m, and they vary as its influence values do. So every quantity here is a function of two means, p̄ and d̄, and
has the interval of such a function (`fganalysis.statistics.ratio`):

    best step η* = p̄/C_m       decrease Δ* = p̄²/(2 C_m)       curved efficiency = (gᵀHg/‖g‖⁴) p̄²/C_m

The pseudo-values vary more than U where guesses are unbiased and many are averaged: noise between pairs of guesses,
which no single guess has, counts twice. There an interval is too long, at most by the factor √2, and marked wide. How
much of the variance this is, is known from u by halves of the guesses: products with two disjoint halves share nothing
but the guess's influence.

A step size is known only where both p̄ and C_m are positive. Where the interval of C_m holds numbers that are not, the
best step and the decrease have no upper bound: it is ∞. Where p̄ ≤ 0 no step size decreases the loss, and the values are
NaN; where C_m ≤ 0 < p̄, the quadratic model has no minimum, and they are ∞.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.efficiency import NOTABLE
from fganalysis.statistics.intervals import FEW, Array, Estimate, mean, power_of_two
from fganalysis.statistics.ratio import ratio_of_means, square_over_mean
from fganalysis.statistics.rounding import ROUNDING

Flags = NDArray[np.bool_]
# Tuned by `python -m studies.calibration --part progress`. To tune it again, change it, run it with `--out` a new
# folder, and read the rows of `curvature_along` and `best_step` on its page: every cell that covers too much must be
# marked wide, and few others. An interval is wide where this share of its squared length may be noise that is counted
# twice.
COUNTED_TWICE = 0.03
# Tuned by `python -m studies.calibration --part progress`. To tune them again, change them, run it with `--out` a new
# folder, and read the rows of `decrease_at_step` and `curvature_at_step` on its page. Smaller values make
# shorter intervals, until cells are tight that have no mark.
TAIL_ROOM = 5.0  # Guesses beyond the most extreme one that an interval of what losses say allows for.
HEAVIEST = 0.9  # Shape of a tail: with heavier ones a mean says little.


@dataclass(frozen=True)
class Curved:
    """Raw material of many samples at once, in any units: (…, guess), and of the network (…).

    Attributes:
        slope: p. curvature: c. with_others: u. with_halves: the same with the others of two disjoint halves of the
            guesses, (2, …, guess).
        squared_gradient: ‖g‖². gradient_curvature: gᵀHg.
    """

    slope: Array
    curvature: Array
    with_others: Array
    with_halves: Array
    squared_gradient: Array
    gradient_curvature: Array

    @property
    def n(self) -> int:
        return self.slope.shape[-1]


def along(raw: Curved, averaged: int) -> Array:
    """d, the pseudo-values of the curvature along the mean of so many guesses, (…, guess)."""
    share = 1 / averaged
    return share * raw.curvature + (1 - share) * _pseudo_values(raw)


def _pseudo_values(raw: Curved) -> Array:
    values: Array = 2 * raw.with_others - raw.with_others.mean(-1, keepdims=True)
    return values


def estimates(raw: Curved, averaged: Sequence[int], precision: float) -> dict[str, Estimate]:
    """Every quantity: (…), and of those of several averaged guesses (averaged, …).

    precision: that of the data type in which products are taken.
    """
    slopes, units = raw.slope, _units(raw)
    rounding = ROUNDING * precision
    found = {
        "slope_along": mean(slopes).of_few(raw.n).of_rounding(rounding * np.abs(slopes.mean(-1))),
        "mean_curvature": _mean_curvature(raw, rounding),
    }
    by_number = [_of_mean(raw, number, units, rounding) for number in averaged]
    for name in by_number[0]:
        found[name] = _stacked([of_number[name] for of_number in by_number])
    return found


def _units(raw: Curved) -> tuple[Array, Array]:
    """Powers of two near ‖g‖² and the size of the curvature: dividing by them rounds nothing."""
    return power_of_two(raw.squared_gradient), power_of_two(np.abs(raw.curvature).mean(-1))


def _mean_curvature(raw: Curved, rounding: float) -> Estimate:
    values = _pseudo_values(raw)
    found = mean(values).of_few(raw.n, 2 * FEW)
    wide = found.wide | (_twice(raw, 1.0) > COUNTED_TWICE * _variance(values))
    return replace(found, wide=wide).of_rounding(rounding * np.abs(found.value))


def _of_mean(raw: Curved, averaged: int, units: tuple[Array, Array], rounding: float) -> dict[str, Estimate]:
    """The quantities of the mean of ``averaged`` guesses, (…)."""
    unit, curved = units
    p, d = raw.slope / unit[..., None], along(raw, averaged) / curved[..., None]
    g2, h = raw.squared_gradient / unit, raw.gradient_curvature / curved
    g2 = np.where(g2 > 0, g2, np.nan)
    few = FEW * (1 + (averaged > 1))
    level = d.mean(-1)
    curvature = mean(d).of_few(raw.n, few)
    # Counted twice, as a variance of a pseudo-value: see the module's text.
    twice = _twice(raw, 1 - 1 / averaged) / curved**2
    curvature = replace(curvature, wide=curvature.wide | (twice > COUNTED_TWICE * _variance(d)))
    curvature = curvature.of_rounding(rounding * np.abs(level))
    below = np.where(level[..., None] > 0, d, np.nan)
    step = ratio_of_means(p, below)
    share = square_over_mean(p, below).scaled(1 / g2)
    eta = _ratio(p.mean(-1), level)
    of_step = _variance(p - eta[..., None] * d)
    of_share = _variance(2 * p - eta[..., None] * d)
    step = replace(step, wide=step.wide | (twice * eta**2 > COUNTED_TWICE * of_step)).of_few(raw.n, few)
    share = replace(share, wide=share.wide | (twice * eta**2 > COUNTED_TWICE * of_share)).of_few(raw.n, few)
    step, share = (part.of_rounding(2 * rounding * np.abs(part.value)) for part in (step, share.within(0.0, np.inf)))
    uphill, flat = np.asarray(p.mean(-1) <= 0), np.asarray(level <= 0)
    step, share = (_said(part, curvature, uphill, flat) for part in (step, share))
    known = np.where(h > 0, h / np.where(g2 > 0, g2, np.nan), np.nan)
    return {
        "curvature_along": curvature.scaled(curved),
        "best_step": step.scaled(unit / curved),
        "expected_decrease": share.scaled(g2 / 2 * unit**2 / curved),
        "curved_efficiency": share.where(~np.isnan(known)).scaled(np.where(np.isnan(known), 1.0, known)),
    }


def _said(part: Estimate, curvature: Estimate, uphill: Flags, flat: Flags) -> Estimate:
    """NaN where the slope is not positive, ∞ where the curvature is not, and no upper bound where it may not be."""
    value = np.where(uphill, np.nan, np.where(flat, np.inf, part.value))
    unknown = np.isnan(curvature.low) | (flat & uphill)
    low = np.where(unknown, np.nan, np.where(flat, 0.0, part.low))
    high = np.where(unknown, np.nan, np.where(curvature.low <= 0, np.inf, part.high))
    return replace(part, value=value, low=low, high=high, wide=np.asarray(part.wide | (curvature.low <= 0)))


def at_step(
    decrease: Array, second_difference: Array, curvature: Array, step: Array, loss: Array, precision: float
) -> dict[str, Estimate]:
    """What losses say at a step size, (…): the decrease, and the curvature with kinks and higher derivatives.

    The step size is taken as given, although the best step of the same guesses is: what is estimated is of that step.
    Losses far away grow with a high power of the guess, so that few guesses show too little of their tail: decrease and
    curvature allow for more of it (`_with_room`).

    Args:
        decrease, second_difference: L − L(θ − step·ĝ), and (L(θ − step·ĝ) + L(θ + step·ĝ) − 2L)/step², (…, guess).
        curvature: ĝᵀHĝ, (…, guess). step, loss: (…). precision: that of the data type of the losses.
    """
    n = decrease.shape[-1]
    rounding = ROUNDING * precision * np.abs(loss)
    of_curvature = 4 * rounding / step**2
    level = curvature.mean(-1)
    below = curvature / level[..., None]
    above = second_difference / level[..., None] - below
    found = {
        "decrease_at_step": (mean(decrease), decrease, rounding),
        "curvature_at_step": (mean(second_difference), second_difference, of_curvature),
    }
    with_room = {
        name: _with_room(estimate, values).of_few(n).of_rounding(least)
        for name, (estimate, values, least) in found.items()
    }
    # Its tail is shorter, and room for a tail would leave no advice of it: where it may be too short it is marked so.
    unseen = ratio_of_means(above, below).of_few(n).of_rounding(of_curvature / level)
    return with_room | {"unseen_curvature": unseen}


def _with_room(estimate: Estimate, influence: Array) -> Estimate:
    """Each bound at least as far as `TAIL_ROOM` further guesses beyond the most extreme one would move the value.

    With a tail of shape k̂ above 0, a guess beyond x is 1/(1 − k̂) times x on average. influence: of the value, (…,
    guess). The interval is wide where this lengthens it much.
    """
    n, middle = influence.shape[-1], influence.mean(-1)
    shape = np.clip(np.nan_to_num(np.asarray(estimate.tail)), 0.0, HEAVIEST)
    weight = TAIL_ROOM / (1 - shape) / n
    low = np.minimum(estimate.low, estimate.value - weight * (middle - influence.min(-1)))
    high = np.maximum(estimate.high, estimate.value + weight * (influence.max(-1) - middle))
    with np.errstate(invalid="ignore"):  # A bound at infinity stays there.
        added = (high - low) - (estimate.high - estimate.low)
        wide = np.asarray(estimate.wide | (added > NOTABLE * (estimate.high - estimate.low)))
    return replace(estimate, low=low, high=high, wide=wide)


def _twice(raw: Curved, share: float) -> Array:
    """Half the variance of pseudo-values that comes from noise between pairs of guesses, times ``share`` squared."""
    halves = raw.with_halves - raw.with_halves.mean(-1, keepdims=True)
    own = (halves[0] * halves[1]).mean(-1)
    pairs = np.maximum(_variance(raw.with_others) - np.maximum(own, 0.0), 0.0)
    # Of the variance 4 Var u of 2u, half of what pairs of guesses add is too much.
    return 2 * share**2 * pairs


def _variance(values: Array) -> Array:
    variance: Array = values.var(-1)
    return variance


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _stacked(parts: Sequence[Estimate]) -> Estimate:
    """Estimates one above the other along a first axis."""

    def stacked(name: str) -> Any:
        return np.stack([np.broadcast_to(getattr(part, name), part.value.shape) for part in parts])

    return Estimate(*(stacked(name) for name in ("value", "se", "low", "high", "wide", "tail")))
