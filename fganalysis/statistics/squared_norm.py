"""The squared norm of a mean from the Gram matrix of noisy group means, with an interval that holds down to zero.

m_a = δ + ξ_a for a = 1 … A, groups of guesses; θ = ‖δ‖² is wanted, ‖m̄‖² overshoots it by tr Cov m̄. With C = Cov m_a

    U = mean of ⟨m_a, m_b⟩ over a ≠ b        E U = θ        Var U = 4ℓ + v₀
    v₀ = 2 tr C²/(A(A−1))   without bias     ℓ = δᵀCδ/A     through the variance of m̄ along the bias

So the standard error grows with θ where the bias points along noise: U ± 1.96 SE is too tight below the truth and too
wide above it, worst where θ is small. Instead every θ ≥ 0 is tested, with its own variance, and those that are not
rejected are the interval. U's law is a shifted gamma law with U's first three moments (the third 8 tr C³/A³ + 24ℓ²/θ),
exact for one dimension without bias and normal for many; Student's t, with Satterthwaite's degrees of freedom, makes up
for estimated variances.

ℓ is estimated, and the noise that makes U too large makes that estimate too large. So its value at θ is what is left
when the noise's share is taken off, ℓ(θ) = ℓ̂ − β(U − θ), β the regression of ℓ̂ on U. For one dimension of noise that
is exact, whether the bias lies along it (ℓ = cθ/A) or across it (ℓ = 0), as that of truncated upstream guesses does.

At θ = 0 only a large U can speak against θ: all 5 % of the error lie on that side, and the interval is [0, upper]. From
θ = 2√Var U on both sides have 2.5 %; between, what the one has the other has not. So the interval is never empty and
covers 95 % everywhere (the idea of Feldman and Cousins 1998), and so does its root, the interval of ‖δ‖. The same holds
where U has the law of a square of one number, which ends less than 1.96 standard deviations below its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fganalysis.statistics.intervals import Z95, Estimate, power_of_two

Array = NDArray[np.float64]
LEAST_GROUPS = 4
MOST_SKEWNESS = np.sqrt(8.0)  # Skewness of the square of a normal number.
TWO_SIDED_SKEWNESS = 2.2  # A gamma law of smaller skewness reaches 1.96 standard deviations below its mean.

# The next four are tuned by `python -m studies.calibration`. To tune them again, change them, run the study with
# `--out` a new folder, and read the rows of the biases on its page: no cell may be tight, and every wide cell must say
# so. Smaller values of MATTERS and larger ones of RESOLVED mark more intervals as wide.
TWO_SIDED_FROM = 2.0  # θ over the standard deviation of U from which on both sides of the interval have 2.5 %.
NOISE_IN_ALONG = 5.0  # ℓ̂ below this many standard deviations of its noise is treated mostly as noise.
MATTERS = 0.4  # An interval can be wide where the bias may add more than this part of v₀ to the variance of U,
RESOLVED = 0.95  # and where what it is estimated to add is less than this part of the variance.
STEPS = 32  # Halvings of a bracket.


@dataclass(frozen=True)
class SquaredNorm:
    """U and its law at any true θ.

    Attributes:
        value: U, which may be negative. variance_without_bias: v₀. along: ℓ̂, which may be negative. slope: β.
        most: the largest variance of m̄ in any direction, so that ℓ ≤ most·θ. skewness: of U without bias.
        degrees: of freedom of a variance in one dimension, A − 1.
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
        """The square of one number that is known with this variance, the variance taken off."""
        along = variance * value
        return cls(value, 2 * variance**2, along, variance, variance, MOST_SKEWNESS + 0 * value, degrees)

    def moved(self, value: Array) -> SquaredNorm:
        """The same law at every θ for another U."""
        return replace(self, value=value, along=self.along + self.slope * (value - self.value))

    def spread(self, truth: Array) -> Array:
        """Standard deviation of U for a true θ."""
        return np.sqrt(self._law(truth)[0])

    def _law(self, truth: Array) -> tuple[Array, Array, Array]:
        """Variance of U for a true θ, the part of it that a bias adds, and its skewness."""
        truth, own = np.maximum(truth, 0.0), self.variance_without_bias
        # Estimates of what is zero are negative as often as positive; at θ = 0 it is known to be zero.
        least = -np.minimum(own, truth * np.sqrt(own) / 2) / 16
        along = np.clip(self.along - self.slope * (self.value - truth), least, self.most * truth)
        variance = 4 * along + own
        # As products of ratios: a power of a variance leaves the range of numbers where a square of it does not.
        along_bias = 24 * _ratio(along, variance) * _ratio(np.abs(along), truth * np.sqrt(variance))
        skewness = along_bias + self.skewness * _ratio(own, variance) ** 1.5
        return variance, 4 * along, np.clip(skewness, 0.02, MOST_SKEWNESS)

    def score(self, truth: Array) -> Array:
        """How far U lies above ``truth``, as a standard normal number; 0 where U has neither error nor difference."""
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
        # Wallace 1959: what is Student's, made normal.
        normal = np.sqrt(degrees * np.log1p(z**2 / degrees)) * (8 * degrees + 1) / (8 * degrees + 3)
        return np.asarray(np.copysign(normal, z))

    def reach(self, truth: Array, tail: float) -> tuple[Array, Array]:
        """How far U may lie below and above ``truth``, each exceeded with probability at most ``tail``, however small.

        Above, where ``score`` has that tail. Below, U's law ends early and the variance is what is least certain: as
        far as a symmetric law with the groups' degrees of freedom would reach.
        """
        truth = np.maximum(truth, 0.0)
        variance, linear, skewness = self._law(truth)
        root = 2 / skewness
        z = -special.stdtrit(self._degrees(truth, variance, linear), tail)
        above = root * ((1 + z / (3 * root) - 1 / (9 * root**2)) ** 3 - 1)
        spread = np.sqrt(variance)
        return -special.stdtrit(self.degrees, tail) * spread, above * spread

    def _degrees(self, truth: Array, variance: Array, linear: Array) -> Array:
        """Of freedom, after Satterthwaite, of U's variance for a true θ."""
        # v₀ is a square: in one dimension its estimate varies as if from fewer groups, in many it hardly varies.
        own = self.variance_without_bias
        one = self.skewness**2 / 8
        few = 3 * one + 2 / self.degrees
        # In many dimensions ℓ̂ has an error of its own, of the order of v₀, but at θ = 0, where ℓ is known.
        noise = own * (1 - one) * np.minimum(_ratio(truth, 2 * np.sqrt(own)), 1.0)
        shares = _ratio(linear + noise, variance) ** 2 + _ratio(own, variance) ** 2 * few
        return np.maximum(self.degrees * np.divide(1.0, shares, out=np.ones_like(shares), where=shares > 0), 1.0)

    def interval(self) -> tuple[Array, Array]:
        """Bounds of θ, 0 ≤ low ≤ high."""
        middle = np.maximum(self.value, 0.0)
        reach = 26 * self.spread(middle) + 26**2 * self.most

        def too_low(theta: Array) -> Array:
            law = self._law(theta)
            return np.asarray(self._score(theta, *law) > -special.ndtri(self._tails(theta, *law)[1]))

        def not_too_high(theta: Array) -> Array:
            law = self._law(theta)
            return np.asarray(self._score(theta, *law) >= special.ndtri(self._tails(theta, *law)[0]))

        return _last(too_low, 0 * middle, middle), _last(not_too_high, middle, middle + reach)

    def _tails(self, truth: Array, variance: Array, linear: Array, skewness: Array) -> tuple[Array, Array]:
        """Probabilities of an error below and above."""
        spread = TWO_SIDED_FROM * np.sqrt(variance)
        room = (2 / skewness - 2 / MOST_SKEWNESS) / (2 / TWO_SIDED_SKEWNESS - 2 / MOST_SKEWNESS)
        clear = np.divide(truth, spread, out=np.where(truth > 0, np.inf, 0.0), where=~(spread <= 0))
        below = 0.025 * np.clip(clear, 0.0, 1.0) * np.clip(room, 0.0, 1.0)
        return below, 0.05 - below

    def estimate(self) -> Estimate:
        """U with its standard error, that at θ = U, and the interval of θ."""
        return Estimate(self.value, self.spread(self.value), *self.interval(), self.unresolved())

    def unresolved(self) -> NDArray[np.bool_]:
        """Where a bias of this size may add much to U's variance, and what it adds is not well known.

        The interval has to allow for it: where the bias lies across the noise it adds nothing, and 97 to 99 % are
        covered.
        """
        own, along = self.variance_without_bias, 4 * np.maximum(self.along, 0.0)
        matters = 4 * self.most * np.maximum(self.value, 0.0) > MATTERS * own
        return np.asarray(matters & (along < RESOLVED * (along + own)))


def root(squared: Estimate) -> Estimate:
    """√θ: 0 where U is negative. The interval is the root of that of θ, the standard error its larger half/1.96."""
    value, low, high = (np.sqrt(np.maximum(part, 0.0)) for part in (squared.value, squared.low, squared.high))
    return Estimate(value, np.maximum(high - value, value - low) / Z95, low, high, squared.wide, squared.tail)


def _last(holds: Callable[[Array], Array], start: Array, stop: Array) -> Array:
    """The end of the range from ``start`` in which a condition holds, ``start`` where it does so nowhere.

    SciPy's elementwise root finder takes 1.1 to 2 times as long, and has no answer where the condition holds nowhere.
    """
    low, high = start, stop
    for _ in range(STEPS):
        middle = (low + high) / 2
        inside = holds(middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(np.isnan(stop), np.nan, low)


def squared_norm(gram: Array, weights: Array) -> SquaredNorm:
    """θ from ⟨m_a, m_b⟩, (…, group, group); ``weights`` (group,) are guesses per group, equal or nearly so.

    C's moments are those of the matrix centred without its diagonal (Székely and Rizzo 2014, U-centring): centring with
    the diagonal adds (tr C)²/A to tr C², in many dimensions all there is. δᵀCδ is what three different groups say more
    than four, E K_ab K_ac − E K_ab K_cd. With λ = tr C³/(A tr C²), its regression on U is

        β = (4 δᵀC²δ/A² + λ v₀)/(4ℓ + v₀)

    λ where there is no bias along the noise, ℓ/θ where that is most of U's variance, for δᵀC²δ ≥ (δᵀCδ)²/θ. It is λ
    until ℓ̂ is more than its noise, λ√v₀ in one dimension. NaN for fewer than 4 groups.
    """
    groups = gram.shape[-1]
    if groups < LEAST_GROUPS:
        missing = np.full(gram.shape[:-2], np.nan)
        return SquaredNorm(*(missing,) * 6, max(groups - 1, 1))
    # Third powers are taken of numbers around one.
    unit = power_of_two(np.abs(gram).max((-2, -1)))
    gram = gram / unit[..., None, None]
    value = mean_over_pairs(gram, weights)
    others = 1 - np.eye(groups)
    # What all have in common would leave the rounding of its square, and changes none of the following.
    common = (gram * others).sum((-2, -1)) / (groups * (groups - 1))
    off = (gram - common[..., None, None]) * others
    rows = off.sum(-1)
    total, squares = rows.sum(-1), (off**2).sum((-2, -1))
    triples, pairs = groups * (groups - 1) * (groups - 2), groups * (groups - 1)
    chains = (rows**2).sum(-1) - squares
    four = (total**2 - 4 * chains - 2 * squares) / (triples * (groups - 3))
    along = (chains / triples - four) / groups
    centred = off - (rows[..., :, None] + rows[..., None, :]) / (groups - 2)
    centred = (centred + (total / ((groups - 1) * (groups - 2)))[..., None, None]) * (1 - np.eye(groups))
    second = (centred**2).sum((-2, -1)) / (groups * (groups - 3))
    # Centred as above, the sums over a ≠ b and over triples lose so many degrees of freedom (the second by sampling).
    third = ((centred @ centred) * centred).sum((-2, -1)) / (groups * (groups - 3) * max(groups - 4, 1))
    own = 2 * second / pairs
    skewness = np.clip(_ratio(MOST_SKEWNESS * third, second**1.5), 0.0, MOST_SKEWNESS)
    noise = np.sqrt(second) * skewness / MOST_SKEWNESS / groups
    positive = np.maximum(along, 0.0)
    share = _ratio(positive, np.maximum(value, 0.0) + np.sqrt(own))
    real = 1 / (1 + _ratio(NOISE_IN_ALONG * noise * np.sqrt(own), positive) ** 4) * (positive > 0)
    slope = noise + real * (_ratio(4 * positive * share + noise * own, 4 * positive + own) - noise)
    most = np.maximum(np.cbrt(np.maximum(third, 0.0)) / groups, share)
    square = unit**2
    return SquaredNorm(unit * value, square * own, square * along, unit * slope, unit * most, skewness, groups - 1)


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
