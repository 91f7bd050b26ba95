"""The squared norm of a mean from the Gram matrix of noisy group means, with an interval that holds down to zero.

m_a = δ + ξ_a for a = 1 … A, groups of guesses; θ = ‖δ‖² is wanted, ‖m̄‖² overshoots it by tr Cov m̄. With C = Cov m_a

    U = mean of ⟨m_a, m_b⟩ over a ≠ b        E U = θ        Var U = 4θr + v₀
    v₀ = 2 tr C²/(A(A−1))   without bias     r = δᵀCδ/(Aθ)  variance of m̄ along the bias

So the standard error grows with θ: U ± 1.96 SE is too tight below the truth and too wide above it, worst where θ is
small. Instead every θ ≥ 0 is tested, with its own variance, and those that are not rejected are the interval. U's law
is a shifted gamma law with U's first three moments (the third 8 tr C³/A³ + 24θr²), exact for one dimension without
bias and normal for many; Student's t, with Satterthwaite's degrees of freedom, makes up for estimated variances.

At θ = 0 only a large U can speak against θ: all 5 % of the error lie on that side, and the interval is [0, upper]. From
θ = 2√Var U on both sides have 2.5 %; between, what the one has the other has not. So the interval is never empty and
covers 95 % everywhere (the idea of Feldman and Cousins 1998), and so does its root, the interval of ‖δ‖.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fganalysis.intervals import Z95, Estimate

Array = NDArray[np.float64]
LEAST_GROUPS = 4
MOST_SKEWNESS = np.sqrt(8.0)  # Of the square of one normal number.
TWO_SIDED_FROM = 2.0  # In standard deviations of U.
STEPS = 32  # Halvings of a bracket.
SMALLEST = 1e-150  # Its square is a number still: a variance of zero divides nothing by zero.


@dataclass(frozen=True)
class SquaredNorm:
    """U and its law at any true θ.

    Attributes:
        value: U, which may be negative. variance_without_bias: v₀. along: r. skewness: of U without bias.
        degrees: of freedom of a variance in one dimension, A − 1.
    """

    value: Array
    variance_without_bias: Array
    along: Array
    skewness: Array
    degrees: int

    def spread(self, truth: Array) -> Array:
        """Standard deviation of U for a true θ."""
        return np.sqrt(4 * np.maximum(truth, 0.0) * self.along + self.variance_without_bias)

    def score(self, truth: Array) -> Array:
        """How far U lies above ``truth``, as a standard normal number; 0 where U has neither error nor difference."""
        truth = np.maximum(truth, 0.0)
        linear, own = 4 * truth * self.along, self.variance_without_bias
        variance = np.maximum(linear + own, SMALLEST)
        third = self.skewness * own**1.5 + 24 * truth * self.along**2
        root = 2 / np.clip(third / variance**1.5, 1e-2, MOST_SKEWNESS)
        # Wilson and Hilferty 1931: the cube root of a gamma variable of shape root² is nearly normal.
        u = (self.value - truth) / np.sqrt(variance)
        z = 3 * root * (np.cbrt(1 + u / root) - 1 + 1 / (9 * root**2))
        # v₀ is a square: in one dimension its estimate varies as if from fewer groups, in many it hardly varies.
        few = 3 * self.skewness**2 / 8 + 2 / self.degrees
        degrees = np.maximum(self.degrees * variance**2 / (linear**2 + own**2 * few + SMALLEST**2), 1.0)
        # Wallace 1959: what is Student's, made normal.
        normal = np.sqrt(degrees * np.log1p(z**2 / degrees)) * (8 * degrees + 1) / (8 * degrees + 3)
        return np.asarray(np.copysign(normal, z))

    def interval(self) -> tuple[Array, Array]:
        """Bounds of θ, 0 ≤ low ≤ high."""
        middle = np.maximum(self.value, 0.0)
        reach = 13 * self.spread(middle) + 2 * 13**2 * self.along
        low = _last(lambda theta: self.score(theta) > -special.ndtri(self._tails(theta)[1]), 0 * middle, middle)
        high = _last(lambda theta: self.score(theta) >= special.ndtri(self._tails(theta)[0]), middle, middle + reach)
        return low, high

    def _tails(self, truth: Array) -> tuple[Array, Array]:
        """Probabilities of an error below and above."""
        spread = self.spread(truth)
        share = np.divide(truth, TWO_SIDED_FROM * spread, out=np.ones_like(spread), where=spread > 0)
        below = 0.025 * np.minimum(share, 1.0)
        return below, 0.05 - below

    def estimate(self) -> Estimate:
        """U with its standard error, that at θ = U, and the interval of θ."""
        return Estimate(self.value, self.spread(self.value), *self.interval())


def root(squared: Estimate) -> Estimate:
    """√θ: 0 where U is negative. The interval is the root of that of θ, the standard error its larger half/1.96."""
    value, low, high = (np.sqrt(np.maximum(part, 0.0)) for part in (squared.value, squared.low, squared.high))
    return Estimate(value, np.maximum(high - value, value - low) / Z95, low, high)


def _last(holds: Callable[[Array], Array], start: Array, stop: Array) -> Array:
    """The end of the range from ``start`` in which a condition holds, ``start`` where it does so nowhere."""
    low, high = start, stop
    for _ in range(STEPS):
        middle = (low + high) / 2
        inside = holds(middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(np.isnan(stop), np.nan, low)


def squared_norm(gram: Array, weights: Array) -> SquaredNorm:
    """θ from ⟨m_a, m_b⟩, (…, group, group); ``weights`` (group,) are guesses per group, equal or nearly so.

    Without bias C's moments are those of the matrix centred without its diagonal (Székely and Rizzo 2014, U-centring):
    centring with the diagonal adds (tr C)²/A to tr C², in many dimensions all there is. δᵀCδ is what three different
    groups say more than four, E K_ab K_ac − E K_ab K_cd. The smaller U, the more r is that of a bias that points where
    the noise does: a bias across it, as that of truncated upstream guesses, has an interval that is too wide. NaN for
    fewer than 4 groups.
    """
    groups = gram.shape[-1]
    if groups < LEAST_GROUPS:
        missing = np.full(gram.shape[:-2], np.nan)
        return SquaredNorm(missing, missing, missing, missing, max(groups - 1, 1))
    outer = np.outer(weights, weights)
    np.fill_diagonal(outer, 0.0)
    value = (gram * outer).sum((-2, -1)) / outer.sum()
    off = gram * (1 - np.eye(groups))
    rows = off.sum(-1)
    total, squares = rows.sum(-1), (off**2).sum((-2, -1))
    triples, pairs = groups * (groups - 1) * (groups - 2), groups * (groups - 1)
    chains = (rows**2).sum(-1) - squares
    four = (total**2 - 4 * chains - 2 * squares) / (triples * (groups - 3))
    along_bias = np.maximum(chains / triples - four, 0.0)
    centred = off - (rows[..., :, None] + rows[..., None, :]) / (groups - 2)
    centred = (centred + (total / ((groups - 1) * (groups - 2)))[..., None, None]) * (1 - np.eye(groups))
    second = (centred**2).sum((-2, -1)) / (groups * (groups - 3))
    # Centred as above, the sums over a ≠ b and over triples lose so many degrees of freedom (the second by sampling).
    third = ((centred @ centred) * centred).sum((-2, -1)) / (groups * (groups - 3) * max(groups - 4, 1))
    first = np.trace(gram, axis1=-2, axis2=-1) / groups - total / pairs
    own = 2 * second / pairs
    noisy = np.divide(second, first, out=np.zeros_like(second), where=first > 0)
    prior = np.sqrt(own)
    size = np.maximum(value, 0.0) + prior
    along = np.divide(along_bias + noisy * prior, size, out=np.zeros_like(size), where=size > 0) / groups
    skewness = np.divide(MOST_SKEWNESS * third, second**1.5, out=np.zeros_like(second), where=second > 0)
    return SquaredNorm(value, own, along, np.clip(skewness, 0.0, MOST_SKEWNESS), groups - 1)
