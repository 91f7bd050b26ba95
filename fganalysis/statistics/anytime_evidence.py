"""Evidence and bounds that hold at whatever moment the sampling stops: NumPy arrays only.

**Evidence of a bias.** Take a direction that is fixed beforehand. Each block b of guesses gives a number x_b, the sum
of its guesses' errors along the direction, which has mean zero without a bias. With S = Σ x_b and V = Σ x_b²

    E = mean over ρ of (1 + ρ²V)^(−1/2) exp(ρ²S² / 2(1 + ρ²V))

is a mixture of exp(λS − λ²V/2) over λ ~ N(0, ρ²). If every x_b is symmetric about zero given the past, exp(λS − λ²V/2)
is a nonnegative supermartingale that starts at 1, whatever the tails (de la Peña 1999, Lemma 6.1). By Ville's
inequality, E then reaches 1/α at any time with probability at most α. This is exact. The error of a single guess need
not be symmetric, but sums over growing blocks become so, and the guarantee is asymptotic in that sense, as that of
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024 (Time-uniform central limit theory). It also holds for averages of
E over directions, with weights fixed beforehand, and for directions chosen from past blocks.

**Upper bound of a bias.** Let m_a be the means of A disjoint groups, of n guesses in all; C the covariance of a guess;
ξ the noise of the overall mean along the bias δ; and U the mean of ⟨m_a − g, m_b − g⟩ over pairs of different groups.
Then

    U = ‖δ‖² + 2‖δ‖ξ + Q,   so   ‖δ‖ ≤ a + √(a² + U + w)   where   ξ ≥ −a and Q ≥ −w

    a = z √(‖C‖₂/n)      w = 2 ‖C‖_F √(x A/(A−1))/n      each fails with probability at most e^(−x) = 1 − Φ(z)

by the Gaussian tail and by Laurent and Massart 2000 (Lemma 1), for groups with Gaussian means. The bound is asymptotic
in the number of guesses, because ‖C‖_F and a bound of ‖C‖₂ are estimated. The bound at look k uses the level
α/(k(k+1)).

Proofs: docs/mathematics.md#anytime-evidence, docs/mathematics.md#upper-bound-of-a-bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

LEAST_GROUPS_OF_BOUND = 8
DIRECTIONS_AT_ONCE = 2**12  # Directions evaluated at once: each value of ρ takes temporary arrays of this length.
# The values of ρ². A term of the mixture finds a bias of ρ standard deviations of one guess soonest: here 0.1 to 0.001.
# `python -m studies.calibration` shows for other values how many guesses it takes to find a bias.
MIXTURE = 10.0 ** -np.arange(2.0, 7.0)


def log_evidence(total: Array, squares: Array) -> Array:
    """log E, elementwise, for S = ``total`` and V = ``squares`` in units of one guess's standard deviation."""
    if total.size > DIRECTIONS_AT_ONCE:
        cuts = range(0, total.size, DIRECTIONS_AT_ONCE)
        parts = [slice(cut, cut + DIRECTIONS_AT_ONCE) for cut in cuts]
        return np.concatenate([log_evidence(total[part], squares[part]) for part in parts])
    spread = 1 + MIXTURE * squares[..., None]
    terms = MIXTURE * total[..., None] ** 2 / (2 * spread) - np.log(spread) / 2
    return np.asarray(special.logsumexp(terms, axis=-1) - np.log(len(MIXTURE)))


def boundary(squares: float, alpha: float) -> float:
    """The |S| at which the evidence reaches 1/α: |S/n − mean| ≤ boundary/n at all times with confidence 1 − α."""
    return _root(lambda total: float(log_evidence(np.array(total), np.array(squares))) + np.log(alpha))


@dataclass
class Evidence:
    """S and V along many directions, in units of about the standard deviation of one guess along each.

    Attributes:
        log_weights: (direction,), logarithms of weights that add up to at most 1.
        total, squares: (direction,), S and V.
        reach: (direction,), the largest change of S that a bias of norm 1 can have caused so far.
    """

    log_weights: Array
    total: Array
    squares: Array
    reach: Array

    @classmethod
    def none(cls, log_weights: Array) -> Evidence:
        return cls(log_weights, *(np.zeros_like(log_weights) for _ in range(3)))

    def add(self, components: Array, directions: slice = slice(None)) -> None:
        """Adds the sums x_b of one block along some directions. The caller updates ``reach``."""
        self.total[directions] += components
        self.squares[directions] += components**2

    def per_direction(self, bias: float = 0.0) -> Array:
        """The weighted log evidence, (direction,), against every bias of norm at most ``bias``.

        Such a bias changes S by at most bias·reach. The evidence is that of S reduced by this amount.
        """
        left = np.maximum(np.abs(self.total) - bias * self.reach, 0.0)
        return self.log_weights + log_evidence(left, self.squares)

    def components(self) -> Array:
        """The estimated bias along each direction less its standard error, to compare directions."""
        surplus = np.abs(self.total) - np.sqrt(self.squares)
        return np.divide(surplus, self.reach, out=np.zeros_like(surplus), where=self.reach > 0)

    def log(self, bias: float = 0.0) -> float:
        """The logarithm of the weighted average of E.

        If the norm of the bias is at most ``bias``, this reaches log(1/α) at any time with probability at most α.
        """
        return float(special.logsumexp(self.per_direction(bias)))

    def least_bias(self, alpha: float) -> float:
        """The largest r such that every bias of norm below r is excluded at all times with confidence 1 − α."""
        threshold = -np.log(alpha)
        if self.log() < threshold:
            return 0.0
        return _root(lambda bias: threshold - self.log(bias))

    def factor_needed(self, alpha: float, bias: float = 0.0) -> float:
        """The number of guesses until ``log(bias)`` reaches log(1/α) if S grows as before, over the number so far."""
        left = np.maximum(np.abs(self.total) - bias * self.reach, 0.0)
        gain = left**2 / (2 * np.maximum(self.squares, 1e-300))
        wanted = gain - self.per_direction(bias) - np.log(alpha)
        return float(np.min(np.divide(wanted, gain, out=np.full_like(gain, np.inf), where=gain > 0)))


@dataclass(frozen=True)
class NormBound:
    """The squared norm of a bias, and an upper bound of its norm, in the units of the guesses.

    Attributes:
        squared: U. upper: the upper bound of ‖δ‖.
        without_bias: ``upper`` at U = 0, the smallest bias that this number of guesses can exclude.
        along, across: a² and w of the module docstring.
    """

    squared: float
    upper: float
    without_bias: float
    along: float
    across: float

    def factor_needed(self, tolerance: float) -> float:
        """The number of guesses until ``upper`` falls to the tolerance, over the number so far; inf if it never does.

        More guesses shrink a² and w by a factor s, which solves √(a²s) + √((a² + w)s + U) = tolerance. Of U only the
        part above w counts. With few guesses the noise of U alone exceeds the tolerance in half of the runs.
        """
        tolerance = min(tolerance, 1e100)  # So that its square is finite.
        room = tolerance**2 - max(self.squared - self.across, 0.0)
        if room <= 0:
            return float("inf")
        slope = tolerance * np.sqrt(self.along)
        root = room / max(slope + np.sqrt(slope**2 + self.across * room), 1e-300)
        return float(1 / root / root) if root > 1e-150 else float("inf")


def norm_bound(gram: Array, alpha: float) -> NormBound:
    """The upper bound of ‖δ‖ with confidence 1 − ``alpha``, from the Gram matrix of the errors of A group means.

    Args:
        gram: ⟨m_a − g, m_b − g⟩, (group, group), of groups of equal size.

    Raises:
        ValueError: fewer than 8 groups.
    """
    groups = gram.shape[0]
    if groups < LEAST_GROUPS_OF_BOUND:
        raise ValueError(f"a bound takes at least {LEAST_GROUPS_OF_BOUND} groups, got {groups}")
    squared = float(_off_diagonal(gram).sum() / (groups * (groups - 1)))
    frobenius, top = spread_of_mean(gram)
    along = float(special.ndtri(alpha / 2)) ** 2 * top
    across = float(2 * frobenius * np.sqrt(np.log(2 / alpha) * groups / (groups - 1)))
    upper = np.sqrt(along) + np.sqrt(max(along + squared + across, 0.0))
    return NormBound(squared, float(upper), float(np.sqrt(along) + np.sqrt(along + across)), along, across)


def spread_of_mean(gram: Array) -> tuple[float, float]:
    """‖C‖_F and a bound of ‖C‖₂ for the covariance C of the mean of all groups, from the Gram matrix K of the groups.

    ‖C‖_F² is Σ K_ab²/(A(A−3)) over a ≠ b, with K centred without its diagonal. This makes it unbiased (U-centring,
    Székely and Rizzo 2014); centring with the diagonal would add (tr C/A)², which in many dimensions is far more. The
    bound of ‖C‖₂ is (tr C⁴)^(1/4). tr C⁴ is the mean of K_ab K_bc K_cd K_da over four different groups, plus three of
    its standard errors of √8 ‖C‖_F⁴/A².
    """
    groups = gram.shape[0]
    between = _off_diagonal(gram)
    rows = between.sum(0) / (groups - 2)
    centred = between - rows - rows[:, None] + between.sum() / ((groups - 1) * (groups - 2))
    matrix = _off_diagonal(centred) / groups
    second = (matrix**2).sum() / (groups * (groups - 3))
    squares = matrix @ matrix
    closed = (squares**2).sum() - 2 * (np.diagonal(squares) ** 2).sum() + (matrix**4).sum()
    fourth = closed / (groups * (groups - 1) * (groups - 2) * (groups - 3))
    fourth = max(fourth, 0.0) + 3 * np.sqrt(8) * second**2 / groups**2
    return float(np.sqrt(second)), float(min(fourth**0.25, np.sqrt(second)))


def spent(alpha: float, look: int) -> float:
    """The level of look k = 1, 2, …: α/(k(k+1)). All levels add up to α."""
    return alpha / (look * (look + 1))


def _off_diagonal(matrix: Array) -> Array:
    return matrix - np.diag(np.diagonal(matrix))


def _root(increasing: Callable[[float], float]) -> float:
    """The root x > 0 of an increasing function, at most 0 at 0: bracketed within a factor of 2, then by Brent."""
    from scipy.optimize import brentq  # Takes as long to import as everything else here.

    high = 1.0
    while increasing(high) < 0:
        high *= 2
    while increasing(high / 2) > 0:
        high /= 2
    rounding = np.finfo(np.float64)
    return float(brentq(increasing, high / 2, high, xtol=rounding.tiny, rtol=4 * rounding.eps))
