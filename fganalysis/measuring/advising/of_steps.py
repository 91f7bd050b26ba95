"""Step size, steps for one of backpropagation, and guesses a step, from what `fganalysis.progress` measures.

With c the curved efficiency of a single guess, C_m the curvature along the mean of m guesses and U = ḡᵀHḡ, the mean of
m guesses makes m/(A + m) of the most progress that a step can make, A = C_1/U − 1, which is 1/c − 1 for unbiased
guesses. A is the number of guesses to balance: from there on, one per cent more of guesses adds less than half a per
cent. At a price F + u m for a step, the most progress for its price is at m = √(A F/u).

Source: docs/mathematics.md#how-many-guesses-a-step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import xarray as xr

from fganalysis.measuring.advising.bounded import MISSING, WITHIN, Bounded, guesses, shown
from fganalysis.measuring.progress_dataset import MUCH_UNSEEN
from fganalysis.results import schema

EQUAL = 1e-6  # Relative difference from which on a predicted mean is not the gradient.


@dataclass(frozen=True)
class Advised:
    """A number, whether it is advised, and the sentences that say so."""

    number: Bounded
    advised: bool
    sentences: tuple[str, ...]


def step_size(cell: xr.Dataset, n_averaged: int) -> tuple[Advised, Bounded]:
    """The step size, and it over that of backpropagation. cell: of one step, estimator and number of guesses."""
    number = Bounded.of(cell, "best_step")
    why_not = _no_step(cell, n_averaged) or number.why_not()
    of = "" if n_averaged == 1 else f" along the mean of {n_averaged} guesses"
    if why_not:
        return Advised(number, False, (f"no step size{of} is advised: {why_not}.",)), MISSING
    exact = float(cell["gradient_step"])
    relative = number.scaled(1 / exact) if math.isfinite(exact) and exact > 0 else MISSING
    sentence = f"step size{of} {number.text()}"
    predicted = float(cell.get("best_step" + schema.PREDICTED, math.nan))
    if math.isfinite(predicted):
        sentence += f", predicted {shown(predicted)}"
    sentence += f"; {relative.text()} times that of backpropagation, {shown(exact)}." if relative != MISSING else "."
    sentences = [sentence]
    if relative == MISSING:
        bend = shown(float(cell["gradient_curvature"]))
        sentences.append(f"backpropagation has no best step to compare with: its curvature gᵀHg is {bend}.")
    if n_averaged > 1:
        sentences.append(
            "kinks and higher derivatives over that step are not measured: fga.progress of "
            f"fga.estimators.Averaged(estimator, {n_averaged}) measures them."
        )
    unseen = _unseen(cell, n_averaged)
    if max(unseen.low, -unseen.high) > MUCH_UNSEEN:
        sentences.append(
            f"over that step the loss curves {_share(unseen)} than H says (kinks, higher derivatives): the best step "
            f"is nearer to {shown(number.value / (1 + unseen.value))}."
        )
    return Advised(number, True, tuple(sentences)), relative


def _unseen(cell: xr.Dataset, n_averaged: int) -> Bounded:
    """Known over the step along a single guess alone."""
    return Bounded.of(cell, "unseen_curvature") if n_averaged == 1 else MISSING


def _no_step(cell: xr.Dataset, n_averaged: int) -> str:
    """Why the quadratic model, or the loss itself, gives no step; empty where both do."""
    slope, curvature = Bounded.of(cell, "slope_along"), Bounded.of(cell, "curvature_along")
    if slope.value <= 0:
        return f"the mean guess does not point downhill, slope_along is {slope.text()}"
    if slope.low <= 0:
        return f"the interval of slope_along, {slope.bounds()}, holds zero, so that no step is known to help"
    if curvature.value <= 0:
        return f"curvature_along is not positive, {curvature.text()}, so that the quadratic model has no best step"
    if curvature.low <= 0:
        return f"the interval of curvature_along, {curvature.bounds()}, holds zero, so that the step has no upper bound"
    unseen = _unseen(cell, n_averaged)
    if unseen.high > WITHIN - 1 or unseen.low < 1 / WITHIN - 1:
        known = unseen.low > WITHIN - 1 or unseen.high < 1 / WITHIN - 1
        words = "curves" if known else "may curve"
        return (
            f"over the best step of the quadratic model, {shown(float(cell['best_step']))}, the loss {words} "
            f"{_share(unseen)} than H says (kinks, higher derivatives)"
        )
    return ""


def _share(unseen: Bounded) -> str:
    side = "more" if unseen.value > 0 else "less"
    return f"{abs(unseen.value):.0%} {side} (unseen_curvature {unseen.bounds()})"


def steps_for_one(cell: xr.Dataset, n_averaged: int) -> Advised:
    """How many steps make the progress of one of backpropagation, and what they cost where the cost is given."""
    efficiency = Bounded.of(cell, "curved_efficiency")
    number = _inverse(efficiency)
    why_not = number.why_not()
    if float(cell["gradient_curvature"]) <= 0:
        why_not = f"the curvature along the gradient, {shown(float(cell['gradient_curvature']))}, is not positive"
    elif efficiency.low <= 0:
        why_not = f"the interval of curved_efficiency, {efficiency.bounds()}, holds zero"
    if why_not:
        return Advised(number, False, (f"how many steps make up for one of backpropagation is not known: {why_not}.",))
    of = "" if n_averaged == 1 else f" of {n_averaged} guesses each"
    sentence = f"{number.text()} steps{of} make up for one of backpropagation (1/curved_efficiency)"
    prices = []
    for name, words in (("progress_per_pass", "passes"), ("progress_per_second", "seconds")):
        if name in cell and math.isfinite(float(cell[name])):
            price = _inverse(Bounded.of(cell, name))
            prices.append(f"{price.text()} times its {words}")
    return Advised(number, True, (sentence + (", at " + " and ".join(prices) if prices else "") + ".",))


def balanced_guesses(cell: xr.Dataset, *, unbiased: bool) -> tuple[Advised, Bounded]:
    """A rounded up to guesses, and A itself. cell: of single guesses."""
    if unbiased or unbiased_by_progress(cell):
        efficiency = Bounded.of(cell, "curved_efficiency")
        excess, formula = _inverse(efficiency).mapped(lambda inverse: max(inverse - 1, 0.0)), "1/curved_efficiency − 1"
        zero = efficiency.low <= 0
        words = f"curved_efficiency, {efficiency.bounds()}"
    else:
        single, mean = Bounded.of(cell, "curvature_along"), Bounded.of(cell, "mean_curvature")
        zero = mean.low <= 0 or single.low <= 0
        words = f"mean_curvature, {mean.bounds()}" if mean.low <= 0 else f"curvature_along, {single.bounds()}"
        formula = "curvature_along/mean_curvature − 1"
        excess = MISSING
        if not zero:
            ratios = [single.value / mean.value, single.low / mean.high, single.high / mean.low]
            wide, short = single.wide or mean.wide, single.short or mean.short
            value, low, high = (max(ratio - 1, 0.0) for ratio in ratios)
            excess = Bounded(value, low, high, wide, short)
    number = guesses(excess)
    why_not = f"the interval of {words}, holds zero" if zero else number.why_not()
    if why_not:
        return Advised(
            number, False, (f"how many guesses a step are worth their price is not known: {why_not}.",)
        ), excess
    if excess.high <= 1:
        added = f"{excess.value:.0%} ({excess.low:.0%} to {excess.high:.0%}; {formula})"
        return Advised(
            number, True, (f"averaging any number of guesses adds at most {added} to a step's progress.",)
        ), excess
    sentence = (
        f"beyond {number.text()} guesses a step ({formula}), averaging pays less than half of what stepping does: one "
        "per cent more guesses add less than half a per cent of progress."
    )
    return Advised(number, True, (sentence,)), excess


def best_priced_guesses(excess: Bounded, cost: xr.Dataset) -> list[str]:
    """√(A F/u) by passes and by seconds. cost: of one estimator, over ``averaged``."""
    counts = sorted(int(count) for count in cost[schema.AVERAGED].values)
    few, many = (cost.sel({schema.AVERAGED: count}) for count in (counts[0], counts[-1]))
    found = []
    for name, bounds in (("passes", ("", "")), ("seconds", (schema.LOW, schema.HIGH))):
        ends = [[float(end[name + suffix]) for suffix in ("", *bounds)] for end in (few, many)]
        if not all(math.isfinite(part) for end in ends for part in end):
            continue
        (first, first_low, first_high), (last, last_low, last_high) = ends
        pairs = ((excess.value, first, last), (excess.low, first_low, last_high), (excess.high, first_high, last_low))
        value, low, high = (
            math.sqrt(of_guesses * _fixed_over_each(one, other, counts[0], counts[-1])) if of_guesses > 0 else 0.0
            for of_guesses, one, other in pairs
        )
        number = guesses(Bounded(value, low, high, excess.wide, excess.short))
        why_not = number.why_not()
        if why_not:
            found.append(f"which number of guesses makes the most progress for its {name} is not known: {why_not}.")
        else:
            found.append(f"the mean of {number.text()} guesses makes the most progress for its {name}.")
    return found


def _fixed_over_each(first: float, last: float, few: int, many: int) -> float:
    """F/u of prices F + u m at two numbers m; it grows with the first price and falls with the last."""
    each, fixed = (last - first) / (many - few), (first * many - last * few) / (many - few)
    return 0.0 if fixed <= 0 else math.inf if each <= 0 else fixed / each


def unbiased_by_progress(cell: xr.Dataset) -> bool:
    """Whether the mean guess is the gradient by its prediction; False where it is not predicted."""
    pairs = (("slope_along", "squared_gradient"), ("mean_curvature", "gradient_curvature"))
    return all(
        abs(float(cell.get(name + schema.PREDICTED, math.nan)) - float(cell[exact])) <= EQUAL * abs(float(cell[exact]))
        for name, exact in pairs
    )


def _inverse(number: Bounded) -> Bounded:
    """1 over it; ∞ where it is zero or below."""
    return number.mapped(lambda value: 1 / value if value > 0 else math.nan if math.isnan(value) else math.inf)
