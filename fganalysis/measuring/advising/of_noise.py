"""Guesses for a cosine, and the layers that hold the noise, from what `fganalysis.diagnose` measures at the weights.

The mean of m guesses has ρ²_m with 1/ρ²_m = 1/cos² + (1/ρ²_1 − 1/cos²)/m, cos = cos(ḡ, g). Its mean cosine is close to
ρ_m, so the least number for a cosine κ is m = (1/ρ²_1 − 1/cos²)/(1/κ² − 1/cos²).

Source: docs/mathematics.md#averaging.
"""

from __future__ import annotations

import math

import xarray as xr

from fganalysis.arguments import listed
from fganalysis.measuring.advising.bounded import Bounded, guesses, shown
from fganalysis.measuring.advising.of_steps import EQUAL, Advised
from fganalysis.results import schema

ROUNDING_NOISE = 1e-8  # Variance over ‖g‖² from which on there is noise, and not rounding.


def unbiased_by_diagnosis(predicted: xr.Dataset) -> bool:
    """Whether the mean guess is the gradient by its prediction. predicted: one estimator, at all weights."""
    return bool(float(predicted["relative_bias"]) <= EQUAL)


def guesses_for_cosine(measured: xr.Dataset, predicted: xr.Dataset, target: float) -> Advised:
    """How many guesses have a mean of this cosine with the gradient. Datasets: of one estimator, at all weights."""
    efficiency = Bounded.of(measured, "efficiency")
    angle, source = Bounded.of(measured, "directional_bias"), "measured"
    known = float(predicted["directional_bias"])
    # A prediction outside of what is measured is none.
    if math.isfinite(known) and not (known < angle.low - EQUAL or known > angle.high + EQUAL):
        angle, source = Bounded(known, known, known), "predicted"
    about = f"guesses for a cosine of {target:g}"
    if not efficiency.low > 0:
        why = f"the interval of efficiency, {efficiency.bounds()}, holds zero" if efficiency.low <= 0 else "it has none"
        return Advised(guesses(efficiency), False, (f"no number of {about} is advised: {why}.",))
    if math.isnan(angle.low):
        reason = "directional_bias has no interval, since the mean of the guesses is lost in their noise"
        return Advised(_number(efficiency, Bounded(0, 0, 1), target), False, (f"no number of {about}: {reason}.",))
    most = math.sqrt(max(0.0, 1 - angle.low))
    if most <= target and not (most == target == 1):
        sentence = f"no number of {about} is enough: the cosine of the mean guess is at most {shown(most)} ({source})."
        return Advised(Bounded(math.inf, math.inf, math.inf), False, (sentence,))
    number = _number(efficiency, angle, target)
    of_angle = f"directional_bias {source}, {shown(angle.low)}" + (
        f" to {shown(angle.high)}" if angle.high > angle.low else ""
    )
    named = f"efficiency {efficiency.bounds()}; {of_angle}"
    if number.why_not():
        return Advised(number, False, (f"no number of {about} is advised: {number.why_not()} ({named}).",))
    return Advised(number, True, (f"{number.text()} {about} ({named}).",))


def _number(efficiency: Bounded, angle: Bounded, target: float) -> Bounded:
    """Grows with the directional bias and falls with the efficiency."""
    pairs = ((efficiency.value, angle.value), (efficiency.high, angle.low), (efficiency.low, angle.high))
    value, low, high = (_least_number(*pair, target) for pair in pairs)
    return guesses(Bounded(value, low, high, efficiency.wide or angle.wide, efficiency.short or angle.short))


def _least_number(efficiency: float, angle: float, target: float) -> float:
    if efficiency >= target**2:
        return 1.0
    if 1 - angle <= target**2:
        return math.inf
    limit = 1 / (1 - angle)
    return (1 / efficiency - limit) / (1 / target**2 - limit)


def noisiest_layer(measured: xr.Dataset) -> tuple[str, list[str]]:
    """The layer of the most variance, empty where the intervals leave it open. measured: one estimator, over layer."""
    whole = measured.sel({schema.LAYER: schema.ALL_LAYERS})
    total, squared = float(whole["variance"]), float(whole["gradient_norm"]) ** 2
    names = [str(name) for name in measured[schema.LAYER].values if str(name) != schema.ALL_LAYERS]
    layers = {name: Bounded.of(measured.sel({schema.LAYER: name}), "variance") for name in names}
    layers = {name: number for name, number in layers.items() if not math.isnan(number.low)}
    of_all = Bounded.of(whole, "variance")
    if of_all.low <= 0 or total <= ROUNDING_NOISE * squared:
        return "", [f"no layer is known to hold noise: the variance of a guess is {of_all.text()}."]
    if len(layers) < 2:
        return "", []
    first, second, *others = sorted(layers, key=lambda name: -layers[name].value)
    holder = layers[first]
    rivals = [name for name in (second, *others) if layers[name].high >= holder.low]
    if rivals:
        tied = listed([first, *rivals], 5)
        sentence = f"which layer holds most of the noise is open: the intervals of variance overlap in {tied}."
        return "", [sentence]
    low_rest = sum(number.low for name, number in layers.items() if name != first)
    high_rest = sum(number.high for name, number in layers.items() if name != first)
    rest = sum(number.value for name, number in layers.items() if name != first)
    share = Bounded(
        holder.value / (holder.value + rest),
        holder.low / (holder.low + high_rest),
        holder.high / (holder.high + low_rest),
    )
    of_gradient = float(measured.sel({schema.LAYER: first})["gradient_norm"]) ** 2 / squared
    sentence = (
        f"layer {first} holds {share.value:.0%} of the noise ({share.low:.0%} to {share.high:.0%} of the variance) and "
        f"{of_gradient:.0%} of the squared gradient."
    )
    return first, [sentence]
