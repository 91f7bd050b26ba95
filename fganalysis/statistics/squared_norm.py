"""The squared norm of a mean, from noisy group means, with a confidence interval that holds down to zero.

The group means are m_a = δ + ξ_a for a = 1 … A, with independent noise ξ_a of covariance C. Their Gram matrix is known,
and θ = ‖δ‖² is wanted. The plain ‖m̄‖² exceeds θ by tr C/A on average. Products of different groups do not:

    U = mean of ⟨m_a, m_b⟩ over a ≠ b        E U = θ        Var U = 4ℓ + v₀
    v₀ = 2 tr C²/(A(A−1))     the variance of U without a bias
    ℓ = δᵀCδ/A                what a bias adds, through the noise of m̄ along δ

**Why not U ± 1.96 standard errors.** Where δ points along the noise, the variance of U grows with θ. A symmetric
interval is then too short where U is too small and too long where U is too large, most of all at small θ. So every
θ ≥ 0 is tested, with the variance that U would have at that θ. The interval is the set of θ that are not rejected.

**The law of U** is taken as a gamma law, shifted to have the first three moments of U; the third central moment is
8 tr C³/A³ + 24ℓ²/θ. This is exact in one dimension without a bias, and normal in many dimensions. The variances are
estimated, so the quantiles are those of Student's t, with degrees of freedom after Satterthwaite.

**ℓ at other θ.** The estimate ℓ̂ comes from the same groups as U, so noise that makes U too large makes ℓ̂ too large.
Its regression on U corrects for that: ℓ(θ) = ℓ̂ − β(U − θ), with β the slope of the regression. For noise in one
dimension this is exact, both for a bias along the noise (ℓ = cθ/A) and for a bias across it (ℓ = 0). Truncated upstream
guesses are biased across their noise.

**Near zero.** At θ = 0 only a large U can speak against θ. All 5 % of the error lie on that side, and the interval is
[0, upper]. From θ = 2√Var U on, each side has 2.5 %. Between these points the shares change linearly. So the interval
is never empty and covers 95 % at every θ (the idea of Feldman and Cousins 1998). Its root is an interval of ‖δ‖. The
test is also one-sided where U has nearly the law of a squared normal number, as that law ends less than 1.96 standard
deviations below its mean.

Derivation: docs/mathematics.md#interval-of-a-squared-norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fganalysis.statistics.intervals import Z95, Estimate, power_of_two

Array = NDArray[np.float64]
LEAST_GROUPS = 4  # tr C² is a sum divided by A(A − 3).
MOST_SKEWNESS = np.sqrt(8.0)  # Skewness of the square of a normal number.
TWO_SIDED_SKEWNESS = 2.2  # A gamma law of smaller skewness reaches 1.96 standard deviations below its mean.

# The next four are tuned by `python -m studies.calibration`. To tune them again, change them, run the study with
# `--out` a new folder, and read the rows of the biases on its page: no cell may be tight, and every wide cell must be
# marked. Smaller values of MATTERS and larger values of RESOLVED mark more intervals as wide.
TWO_SIDED_FROM = 2.0  # θ over the standard deviation of U from which on both sides of the interval have 2.5 %.
NOISE_IN_ALONG = 5.0  # ℓ̂ below this many standard deviations of its noise is treated mostly as noise.
MATTERS = 0.4  # An interval can be wide where the bias may add more than this part of v₀ to the variance of U,
RESOLVED = 0.95  # and where what it is estimated to add is less than this part of the variance.
STEPS = 32  # Halvings of a bracket.


@dataclass(frozen=True)
class SquaredNorm:
    """U and its law at any true θ.

    Attributes:
        value: U, which may be negative.
        variance_without_bias: v₀, the variance of U at θ = 0.
        along: ℓ̂, which may be negative.
        slope: β, the regression of ℓ̂ on U.
        most: the largest variance of m̄ in any direction, so that ℓ ≤ most·θ.
        skewness: of U at θ = 0.
        degrees: degrees of freedom of a variance in one dimension, A − 1.
    """

    value: Array
    variance_without_bias: Array
    along: Array
    slope: Array
    most: Array
    skewness: Array
    degrees: int

    @classmethod
    def of_a_square(cls, value: Array, variance: Array, degrees: int) -> SquaredNorm:
        """The law for the square of a number. ``value``: its squared estimate less the ``variance`` of the estimate."""
        along = variance * value
        return cls(value, 2 * variance**2, along, variance, variance, MOST_SKEWNESS + 0 * value, degrees)

    def moved(self, value: Array) -> SquaredNorm:
        """The same law at every θ for another U."""
        return replace(self, value=value, along=self.along + self.slope * (value - self.value))

    def spread(self, truth: Array) -> Array:
        """Standard deviation of U for a true θ."""
        return np.sqrt(self._law(truth)[0])

    def _law(self, truth: Array) -> tuple[Array, Array, Array]:
        """At a true θ: the variance of U, the part of that variance that comes from the bias, and the skewness of U."""
        truth, without_bias = np.maximum(truth, 0.0), self.variance_without_bias
        # Where ℓ is zero, its estimate is negative as often as positive. At θ = 0 it is known to be zero.
        least = -np.minimum(without_bias, truth * np.sqrt(without_bias) / 2) / 16
        along = np.clip(self.along - self.slope * (self.value - truth), least, self.most * truth)
        variance = 4 * along + without_bias
        # Products of ratios, because powers of a variance may overflow or underflow.
        along_bias = 24 * _ratio(along, variance) * _ratio(np.abs(along), truth * np.sqrt(variance))
        skewness = along_bias + self.skewness * _ratio(without_bias, variance) ** 1.5
        return variance, 4 * along, np.clip(skewness, 0.02, MOST_SKEWNESS)

    def score(self, truth: Array) -> Array:
        """How far U lies above ``truth``, as a standard normal number; 0 where U is ``truth`` and has no error."""
        truth = np.maximum(truth, 0.0)
        return self._score(truth, *self._law(truth))

    def _score(self, truth: Array, variance: Array, linear: Array, skewness: Array) -> Array:
        root = 2 / skewness
        # Wilson and Hilferty 1931: the cube root of a gamma variable of shape root² is nearly normal.
        difference = self.value - truth
        certain = np.where(difference == 0, 0.0, np.copysign(np.inf, difference))
        u = np.divide(difference, np.sqrt(variance), out=certain, where=~(variance <= 0))
        z = 3 * root * (np.cbrt(1 + u / root) - 1 + 1 / (9 * root**2))
        degrees = self._degrees(truth, variance, linear)
        # Wallace 1959: a normal number from one that has Student's t law.
        normal = np.sqrt(degrees * np.log1p(z**2 / degrees)) * (8 * degrees + 1) / (8 * degrees + 3)
        return np.asarray(np.copysign(normal, z))

    def reach(self, truth: Array, tail: float) -> tuple[Array, Array]:
        """How far U may lie below and above ``truth``: each distance is exceeded with probability at most ``tail``.

        Above, the distance is that at which ``score`` has this tail. Below, the gamma law ends early, and the error of
        the estimated variance matters most: the distance is that of a symmetric law with the groups' degrees of
        freedom.
        """
        truth = np.maximum(truth, 0.0)
        variance, linear, skewness = self._law(truth)
        root = 2 / skewness
        z = -special.stdtrit(self._degrees(truth, variance, linear), tail)
        above = root * ((1 + z / (3 * root) - 1 / (9 * root**2)) ** 3 - 1)
        spread = np.sqrt(variance)
        return -special.stdtrit(self.degrees, tail) * spread, above * spread

    def _degrees(self, truth: Array, variance: Array, linear: Array) -> Array:
        """Degrees of freedom, after Satterthwaite, of the estimated variance of U at a true θ."""
        # In one dimension the estimate of v₀, a square, varies as if from fewer groups. In many it hardly varies.
        without_bias = self.variance_without_bias
        one_dimensional = self.skewness**2 / 8
        relative_variance = 3 * one_dimensional + 2 / self.degrees
        # In many dimensions ℓ̂ has a further error of the order of v₀, except at θ = 0, where ℓ is known to be zero.
        noise = without_bias * (1 - one_dimensional) * np.minimum(_ratio(truth, 2 * np.sqrt(without_bias)), 1.0)
        shares = _ratio(linear + noise, variance) ** 2 + _ratio(without_bias, variance) ** 2 * relative_variance
        return np.maximum(self.degrees * np.divide(1.0, shares, out=np.ones_like(shares), where=shares > 0), 1.0)

    def interval(self) -> tuple[Array, Array]:
        """Bounds of θ, 0 ≤ low ≤ high."""
        middle = np.maximum(self.value, 0.0)
        reach = 26 * self.spread(middle) + 26**2 * self.most

        def inside(theta: Array) -> Array:
            """(bound, …): whether the lower bound is above the first, and whether the upper is not below the second."""
            law = self._law(theta)
            score, (below, above) = self._score(theta, *law), self._tails(theta, *law)
            return np.stack([score[0] > -special.ndtri(above[0]), score[1] >= special.ndtri(below[1])])

        # Both bounds at once: the arrays are so small that it is calls that take the time.
        bounds = _last(inside, np.stack([0 * middle, middle]), np.stack([middle, middle + reach]))
        return np.asarray(bounds[0]), np.asarray(bounds[1])

    def _tails(self, truth: Array, variance: Array, linear: Array, skewness: Array) -> tuple[Array, Array]:
        """The probabilities of error that the test allows for U below and above a true θ."""
        spread = TWO_SIDED_FROM * np.sqrt(variance)
        room = (2 / skewness - 2 / MOST_SKEWNESS) / (2 / TWO_SIDED_SKEWNESS - 2 / MOST_SKEWNESS)
        clear = np.divide(truth, spread, out=np.where(truth > 0, np.inf, 0.0), where=~(spread <= 0))
        below = 0.025 * np.clip(clear, 0.0, 1.0) * np.clip(room, 0.0, 1.0)
        return below, 0.05 - below

    def estimate(self) -> Estimate:
        """U with its standard error, that at θ = U, and the interval of θ."""
        return Estimate(self.value, self.spread(self.value), *self.interval(), self.unresolved())

    def unresolved(self) -> NDArray[np.bool_]:
        """Where a bias of this size may add much to the variance of U, and how much it adds is not well known.

        The interval has to allow for the larger variance. A bias across the noise adds nothing, and then the interval
        covers 97 to 99 %.
        """
        without_bias, along = self.variance_without_bias, 4 * np.maximum(self.along, 0.0)
        matters = 4 * self.most * np.maximum(self.value, 0.0) > MATTERS * without_bias
        return np.asarray(matters & (along < RESOLVED * (along + without_bias)))


def root(squared: Estimate) -> Estimate:
    """√θ: 0 where U is negative. The interval is the root of that of θ, the standard error its larger half/1.96."""
    value, low, high = (np.sqrt(np.maximum(part, 0.0)) for part in (squared.value, squared.low, squared.high))
    return Estimate(value, np.maximum(high - value, value - low) / Z95, low, high, squared.wide, squared.tail)


def _last(holds: Callable[[Array], Array], start: Array, stop: Array) -> Array:
    """The end of the range from ``start`` in which a condition holds; ``start`` if it holds nowhere.

    SciPy's elementwise root finder takes 1.1 to 2 times as long, and has no answer where the condition holds nowhere.
    """
    low, high = start, stop
    for _ in range(STEPS):
        middle = (low + high) / 2
        inside = holds(middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(np.isnan(stop), np.nan, low)


def squared_norm(gram: Array, weights: Array) -> SquaredNorm:
    """θ from the Gram matrix K_ab = ⟨m_a, m_b⟩, (…, group, group); NaN for fewer than 4 groups.

    weights: (group,), the number of guesses in each group, equal or nearly so.

    tr C² and tr C³ come from K centred without its diagonal (U-centring, Székely and Rizzo 2014). Centring with the
    diagonal would add (tr C)²/A to tr C², which in many dimensions is far more than tr C². δᵀCδ is the difference
    E K_ab K_ac − E K_ab K_cd over different groups. With λ = tr C³/(A tr C²), the regression of ℓ̂ on U has the slope

        β = (4 δᵀC²δ/A² + λ v₀)/(4ℓ + v₀)

    This is λ where the bias adds nothing to the variance of U, and ℓ/θ where it adds most of it (using the lower bound
    (δᵀCδ)²/θ of δᵀC²δ). The slope is taken as λ until ℓ̂ exceeds its noise, which in one dimension is λ√v₀.
    """
    groups = gram.shape[-1]
    if groups < LEAST_GROUPS:
        missing = np.full(gram.shape[:-2], np.nan)
        return SquaredNorm(*(missing,) * 6, max(groups - 1, 1))
    # Scaled to numbers near 1, because third powers are taken.
    unit = power_of_two(np.abs(gram).max((-2, -1)))
    gram = gram / unit[..., None, None]
    value = mean_over_pairs(gram, weights)
    off_diagonal = 1 - np.eye(groups)
    # The mean of all entries is taken off: nothing below depends on it, and its square would leave rounding errors.
    common = (gram * off_diagonal).sum((-2, -1)) / (groups * (groups - 1))
    off = (gram - common[..., None, None]) * off_diagonal
    rows = off.sum(-1)
    total, squares = rows.sum(-1), (off**2).sum((-2, -1))
    triples, pairs = groups * (groups - 1) * (groups - 2), groups * (groups - 1)
    chains = (rows**2).sum(-1) - squares
    four = (total**2 - 4 * chains - 2 * squares) / (triples * (groups - 3))
    along = (chains / triples - four) / groups
    centred = off - (rows[..., :, None] + rows[..., None, :]) / (groups - 2)
    centred = (centred + (total / ((groups - 1) * (groups - 2)))[..., None, None]) * (1 - np.eye(groups))
    second = (centred**2).sum((-2, -1)) / (groups * (groups - 3))
    # Degrees of freedom of the centred sums over pairs and over triples; the second was found by sampling.
    third = ((centred @ centred) * centred).sum((-2, -1)) / (groups * (groups - 3) * max(groups - 4, 1))
    without_bias = 2 * second / pairs
    skewness = np.clip(_ratio(MOST_SKEWNESS * third, second**1.5), 0.0, MOST_SKEWNESS)
    noise = np.sqrt(second) * skewness / MOST_SKEWNESS / groups
    positive = np.maximum(along, 0.0)
    share = _ratio(positive, np.maximum(value, 0.0) + np.sqrt(without_bias))
    real = 1 / (1 + _ratio(NOISE_IN_ALONG * noise * np.sqrt(without_bias), positive) ** 4) * (positive > 0)
    slope = noise + real * (_ratio(4 * positive * share + noise * without_bias, 4 * positive + without_bias) - noise)
    most = np.maximum(np.cbrt(np.maximum(third, 0.0)) / groups, share)
    square = unit**2
    return SquaredNorm(
        unit * value, square * without_bias, square * along, unit * slope, unit * most, skewness, groups - 1
    )


def mean_over_pairs(gram: Array, weights: Array) -> Array:
    """U: the weighted mean of ⟨m_a, m_b⟩ over a ≠ b."""
    outer = np.outer(weights, weights)
    np.fill_diagonal(outer, 0.0)
    mean: Array = (gram * outer).sum((-2, -1)) / outer.sum()
    return mean


def _ratio(numerator: Array, denominator: Array) -> Array:
    """0 where the denominator is not positive."""
    nothing = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape))
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
