"""How far a measured quantity may lie from a right prediction, with an error however rare: NumPy arrays only.

Many comparisons at a small alpha ask for tails of 10⁻⁴ to 10⁻⁶ each, where value ± z SE with a normal z is far too
tight: squares and products of noise are skewed, their variance is estimated, and few guesses make up much of it. So

* a mean is tested with Hall's correction and Student's quantiles (`fganalysis.statistics.intervals`), those of a
variance estimate
  with the sample's kurtosis, and with room for three more guesses as far out as the furthest. A prediction of a smooth
  function of means is tested as that of a mean: best scale c as E(p − c q) = 0, efficiency by its root;
* a squared norm, that of a bias or a tangent, is tested with its variance at the prediction (`SquaredNorm.reach`);
* a proportion is tested by the binomial law, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fganalysis.statistics.intervals import Array, Shape, shape, skewed
from fganalysis.statistics.quantities import ROOM, cosines, errors_about, squared_tangent
from fganalysis.statistics.squared_norm import SquaredNorm, squared_norm


@dataclass(frozen=True)
class Margin:
    """Value and prediction on the scale on which they are compared, and how far below and above the prediction a value
    may lie. ``power`` of a ratio on that scale is the ratio of the quantity itself."""

    value: Array
    prediction: Array
    below: Array
    above: Array
    power: float = 1.0


@dataclass(frozen=True)
class RawSample:
    """What a sample keeps: p and q (…, guess), Gram matrices (…, group, group), the group of each guess, ‖g‖² (…) or
    NaN where it is zero, and the variance with its standard error."""

    inner_product: Array
    squared_length: Array
    gram: Array
    group_of_guess: NDArray[np.int64]
    squared_gradient: Array
    variance: Array
    variance_error: Array

    def margin(self, quantity: str, prediction: Array, tail: float) -> Margin:
        """For a name of ``MARGINS``; ``tail`` is the probability of a value beyond the margin on one side."""
        return MARGINS[quantity](self, prediction, tail)

    def errors(self) -> Array:
        return self.squared_length - 2 * self.inner_product + self.squared_gradient[..., None]

    def sizes(self) -> Array:
        return np.bincount(self.group_of_guess, minlength=self.gram.shape[-1]).astype(float)


def _mean(values: Array, prediction: Array, tail: float, power: float = 1.0) -> Margin:
    return _around(values.mean(-1), values, shape(values), prediction, tail, power)


def _around(value: Array, influence: Array, found: Shape, prediction: Array, tail: float, power: float = 1.0) -> Margin:
    estimate = skewed(value, found, tail=tail)
    middle, room = influence.mean(-1), ROOM / found.n
    above = value - estimate.low + room * (middle - influence.min(-1))
    below = estimate.high - value + room * (influence.max(-1) - middle)
    return Margin(value, prediction, below, above, power)


def _shrinkage(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _mean(sample.inner_product / sample.squared_gradient[..., None], prediction, tail)


def _mse(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _mean(sample.errors(), prediction, tail)


def _variance(sample: RawSample, prediction: Array, tail: float) -> Margin:
    """The mean error less the squared bias: its own standard error, and the shape of the mean error about s g.

    About g it is mostly that of the bias where a guess is short: see `moments._variance`.
    """
    scale = sample.inner_product.mean(-1) / sample.squared_gradient
    errors = errors_about(scale, sample.inner_product, sample.squared_length, sample.squared_gradient)
    own = shape(errors)
    found = Shape(own.n, sample.variance_error, own.skewness, own.kurtosis)
    return _around(sample.variance, errors, found, prediction, tail)


def _cosine(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _mean(cosines(sample.inner_product, sample.squared_length, sample.squared_gradient), prediction, tail)


def _best_scale(sample: RawSample, prediction: Array, tail: float) -> Margin:
    p, q = sample.inner_product, sample.squared_length
    second = q.mean(-1, keepdims=True)
    second = np.where(second > 0, second, np.nan)
    return _mean((p - prediction[..., None] * q) / second + prediction[..., None], prediction, tail)


def _efficiency(sample: RawSample, prediction: Array, tail: float) -> Margin:
    """|ρ|, E p/√(‖g‖² E q) with influence values u − ρv/2: see `fganalysis.statistics.quantities`."""
    p, q, g2 = sample.inner_product, sample.squared_length, sample.squared_gradient[..., None]
    first, second = p.mean(-1, keepdims=True), q.mean(-1, keepdims=True)
    second = np.where(second > 0, second, np.nan)
    length, sign = np.sqrt(g2 * second), np.where(first < 0, -1.0, 1.0)
    rho = np.abs(first) / length
    return _mean(rho + sign * (p - first) / length - rho * (q / second - 1) / 2, np.sqrt(prediction), tail, 2.0)


def _descent_probability(sample: RawSample, prediction: Array, tail: float) -> Margin:
    """Clopper and Pearson 1934."""
    n = sample.inner_product.shape[-1]
    hits = (sample.inner_product > 0).sum(-1)
    low = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1), n - hits + 1, tail), 0.0)
    high = np.where(hits < n, special.betainccinv(hits + 1, np.maximum(n - hits, 1), tail), 1.0)
    return Margin(hits / n, prediction, high - hits / n, hits / n - low)


def _of_squared_norm(law: SquaredNorm, prediction: Array, tail: float, power: float = 1.0) -> Margin:
    below, above = law.reach(prediction, tail)
    return Margin(law.value, prediction, below, above, power)


def _squared_bias(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _of_squared_norm(squared_norm(sample.gram, sample.sizes()), prediction, tail)


def _bias(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _of_squared_norm(squared_norm(sample.gram, sample.sizes()), prediction**2, tail, 0.5)


def _relative_bias(sample: RawSample, prediction: Array, tail: float) -> Margin:
    relative = sample.gram / sample.squared_gradient[..., None, None]
    return _of_squared_norm(squared_norm(relative, sample.sizes()), prediction**2, tail, 0.5)


def _directional_bias(sample: RawSample, prediction: Array, tail: float) -> Margin:
    """sin² by the squared tangent."""
    law = squared_tangent(
        sample.gram, sample.sizes(), sample.inner_product, sample.group_of_guess, sample.squared_gradient
    )
    squared = np.divide(prediction, 1 - prediction, out=np.full_like(prediction, np.nan), where=prediction < 1)
    return _of_squared_norm(law, squared, tail)


MARGINS: dict[str, Callable[[RawSample, Array, float], Margin]] = {
    "bias": _bias,
    "squared_bias": _squared_bias,
    "relative_bias": _relative_bias,
    "shrinkage": _shrinkage,
    "directional_bias": _directional_bias,
    "variance": _variance,
    "mse": _mse,
    "cosine": _cosine,
    "efficiency": _efficiency,
    "best_scale": _best_scale,
    "descent_probability": _descent_probability,
}
