"""How far a measured quantity may lie from a correct prediction, at error probabilities of 10⁻⁴ to 10⁻⁶: NumPy only.

Many comparisons at a small total alpha leave each comparison such a probability. At this level, value ± z SE with a
normal z is far too short: squares and products of noise are skewed, and their variance is an estimate that depends on a
few large guesses. Instead:

* A mean is tested with Hall's correction and the quantiles of Student's t (`fganalysis.statistics.intervals`), as if
  three more guesses were as far out as the furthest. A prediction of a function of means is turned into a
  prediction of a mean: the best scale c by E(p − c q) = 0, the efficiency by its root.
* The squared norm of a bias or a tangent is tested with the variance that it would have at the prediction
  (`SquaredNorm.reach`).
* A proportion is tested by the binomial law.

Source: docs/mathematics.md#far-tails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fganalysis.statistics.directional_bias import squared_tangent
from fganalysis.statistics.efficiency import ROOM
from fganalysis.statistics.guess_scalars import cosines, errors_about
from fganalysis.statistics.intervals import Array, Shape, shape, skewed
from fganalysis.statistics.squared_norm import SquaredNorm, squared_norm


@dataclass(frozen=True)
class Margin:
    """A value and its prediction, on the scale on which they are compared.

    Attributes:
        value, prediction: on that scale; for a norm it is that of the square.
        below, above: how far below and above the prediction the value may lie.
        power: a ratio of two values on that scale, to this power, is the ratio of the quantity itself.
    """

    value: Array
    prediction: Array
    below: Array
    above: Array
    power: float = 1.0


@dataclass(frozen=True)
class RawSample:
    """What a sample keeps of its guesses.

    Attributes:
        inner_product, squared_length: p = ⟨ĝ, g⟩ and q = ‖ĝ‖², (…, guess).
        gram: ⟨m_a − g, m_b − g⟩ of the group means, (…, group, group).
        group_of_guess: (guess,).
        squared_gradient: ‖g‖², (…), NaN where it is zero.
        variance, variance_error: the estimated variance and its standard error, (…).
    """

    inner_product: Array
    squared_length: Array
    gram: Array
    group_of_guess: NDArray[np.int64]
    squared_gradient: Array
    variance: Array
    variance_error: Array

    def margin(self, quantity: str, prediction: Array, tail: float) -> Margin:
        """The margin of a quantity, a key of ``MARGINS``; ``tail``: probability of a value beyond it on one side."""
        return MARGINS[quantity](self, prediction, tail)

    def errors(self) -> Array:
        return self.squared_length - 2 * self.inner_product + self.squared_gradient[..., None]

    def sizes(self) -> Array:
        return np.bincount(self.group_of_guess, minlength=self.gram.shape[-1]).astype(float)


def _mean(values: Array, prediction: Array, tail: float, power: float = 1.0) -> Margin:
    return _around(values.mean(-1), values, shape(values), prediction, tail, power)


def _around(
    value: Array, influence: Array, influence_shape: Shape, prediction: Array, tail: float, power: float = 1.0
) -> Margin:
    estimate = skewed(value, influence_shape, tail=tail)
    middle, room = influence.mean(-1), ROOM / influence_shape.n
    above = value - estimate.low + room * (middle - influence.min(-1))
    below = estimate.high - value + room * (influence.max(-1) - middle)
    return Margin(value, prediction, below, above, power)


def _shrinkage(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _mean(sample.inner_product / sample.squared_gradient[..., None], prediction, tail)


def _mse(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _mean(sample.errors(), prediction, tail)


def _variance(sample: RawSample, prediction: Array, tail: float) -> Margin:
    """The margin of the variance, from its standard error and the skewness and kurtosis of ‖ĝ − s g‖².

    s is the shrinkage. Errors about g itself, ‖ĝ − g‖², would mostly show the bias where a guess is much shorter than
    the gradient.
    """
    scale = sample.inner_product.mean(-1) / sample.squared_gradient
    errors = errors_about(scale, sample.inner_product, sample.squared_length, sample.squared_gradient)
    error_shape = shape(errors)
    influence_shape = Shape(error_shape.n, sample.variance_error, error_shape.skewness, error_shape.kurtosis)
    return _around(sample.variance, errors, influence_shape, prediction, tail)


def _cosine(sample: RawSample, prediction: Array, tail: float) -> Margin:
    return _mean(cosines(sample.inner_product, sample.squared_length, sample.squared_gradient), prediction, tail)


def _best_scale(sample: RawSample, prediction: Array, tail: float) -> Margin:
    p, q = sample.inner_product, sample.squared_length
    second = q.mean(-1, keepdims=True)
    second = np.where(second > 0, second, np.nan)
    return _mean((p - prediction[..., None] * q) / second + prediction[..., None], prediction, tail)


def _efficiency(sample: RawSample, prediction: Array, tail: float) -> Margin:
    """The margin of |ρ| = |E p|/√(‖g‖² E q), the root of the efficiency, with influence values u − ρv/2.

    Source: docs/mathematics.md#interval-of-a-ratio.
    """
    p, q, g2 = sample.inner_product, sample.squared_length, sample.squared_gradient[..., None]
    first, second = p.mean(-1, keepdims=True), q.mean(-1, keepdims=True)
    second = np.where(second > 0, second, np.nan)
    length, sign = np.sqrt(g2 * second), np.where(first < 0, -1.0, 1.0)
    rho = np.abs(first) / length
    return _mean(rho + sign * (p - first) / length - rho * (q / second - 1) / 2, np.sqrt(prediction), tail, 2.0)


def _descent_probability(sample: RawSample, prediction: Array, tail: float) -> Margin:
    """The exact binomial margin (Clopper and Pearson 1934)."""
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
    """The margin of the squared tangent: sin² = tan²/(1 + tan²)."""
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
