"""Evidence and bounds that hold at whatever moment the sampling stops: NumPy arrays only.

Evidence of a bias. Along a direction fixed beforehand, block after block of guesses gives a number x_b, the sum over
the block's guesses of the error's component, of mean zero without bias. With S = Σ x_b and V = Σ x_b²

    E = mean over ρ of (1 + ρ²V)^(−1/2) exp(ρ²S² / 2(1 + ρ²V))

is a mixture over λ ~ N(0, ρ²) of exp(λS − λ²V/2). Where every x_b is distributed symmetrically about zero given the
past, each of these is a nonnegative supermartingale from 1, whatever the tails (de la Peña 1999, Lemma 6.1), so by
Ville's inequality E ever reaches 1/α with probability at most α. This much is exact. A component of a guess need not be
symmetric; the sum over a block tends to be as blocks grow, which is where the guarantee becomes asymptotic, as that of
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024 (Time-uniform central limit theory) is. Averages of such E over
directions, with weights fixed beforehand, are of the same kind; so are those of directions chosen from past blocks.

Bound of a bias from above. With m_a the means of A disjoint groups of n guesses in all, C the covariance of a guess, ξ
the noise of the mean along the bias δ, and U the mean of ⟨m_a − g, m_b − g⟩ over pairs of different groups

    U = ‖δ‖² + 2‖δ‖ξ + Q,   so   ‖δ‖ ≤ a + √(a² + U + w)   where   ξ ≥ −a and Q ≥ −w

    a = z √(‖C‖₂/n)      w = 2 ‖C‖_F √(x A/(A−1))/n      each failing with probability at most e^(−x) = 1 − Φ(z)

by the Gaussian tail and by Laurent and Massart 2000 (Lemma 1), for groups with Gaussian means: asymptotic in the number
of guesses, ‖C‖_F and a bound of ‖C‖₂ being estimated. The bounds at the looks k = 1, 2, … spend α/(k(k+1)) each.
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
    """Sums along many directions, each scaled to about unit standard deviation of one guess.

    Attributes:
        log_weights: (direction,), logarithms of weights that add up to at most 1.
        total, squares: (direction,), S and V. reach: (direction,), how far a bias of norm 1 can have moved S.
    """

    log_weights: Array
    total: Array
    squares: Array
    reach: Array

    @classmethod
    def none(cls, log_weights: Array) -> Evidence:
        return cls(log_weights, *(np.zeros_like(log_weights) for _ in range(3)))

    def add(self, components: Array, directions: slice = slice(None)) -> None:
        """Takes in one block's ``components`` along some directions; whoever calls adds to ``reach``."""
        self.total[directions] += components
        self.squares[directions] += components**2

    def per_direction(self, bias: float = 0.0) -> Array:
        """Weighted log evidence against every bias of norm ``bias`` or less, (direction,).

        Such a bias moves S by at most bias·reach, so what is left of S after that is evidence against all of them.
        """
        left = np.maximum(np.abs(self.total) - bias * self.reach, 0.0)
        return self.log_weights + log_evidence(left, self.squares)

    def components(self) -> Array:
        """The component of the bias along each direction less one standard error, for comparisons of directions."""
        surplus = np.abs(self.total) - np.sqrt(self.squares)
        return np.divide(surplus, self.reach, out=np.zeros_like(surplus), where=self.reach > 0)

    def log(self, bias: float = 0.0) -> float:
        """log of the weighted average of E.

        Where the bias has the norm ``bias`` or less, it is ever at least log(1/α) with probability at most α.
        """
        return float(special.logsumexp(self.per_direction(bias)))

    def least_bias(self, alpha: float) -> float:
        """The largest r such that every bias of norm below r is excluded at all times with confidence 1 − α."""
        threshold = -np.log(alpha)
        if self.log() < threshold:
            return 0.0
        return _root(lambda bias: threshold - self.log(bias))

    def factor_needed(self, alpha: float, bias: float = 0.0) -> float:
        """How many times the guesses so far it would take for ``log(bias)`` to reach log(1/α), if S goes on growing."""
        left = np.maximum(np.abs(self.total) - bias * self.reach, 0.0)
        gain = left**2 / (2 * np.maximum(self.squares, 1e-300))
        wanted = gain - self.per_direction(bias) - np.log(alpha)
        return float(np.min(np.divide(wanted, gain, out=np.full_like(gain, np.inf), where=gain > 0)))


@dataclass(frozen=True)
class NormBound:
    """The squared norm of a mean from groups: ``squared`` is U; ``upper`` bounds the norm; both in the guesses' units.

    ``without_bias`` is what ``upper`` would be at U = 0: the smallest bias that so many guesses can exclude. ``along``
    and ``across`` are a² and w of the module docstring.
    """

    squared: float
    upper: float
    without_bias: float
    along: float
    across: float

    def factor_needed(self, tolerance: float) -> float:
        """How many times the guesses so far it would take to bring ``upper`` to the tolerance; inf if U is above it.

        With s the share of a², w and so on that is left: √(a²s) + √((a² + w)s + U) = tolerance, quadratic in √s. Of U
        only what is above w: with few guesses the noise of U alone exceeds the tolerance in half of the runs.
        """
        tolerance = min(tolerance, 1e100)  # Its square is a number too.
        room = tolerance**2 - max(self.squared - self.across, 0.0)
        if room <= 0:
            return float("inf")
        slope = tolerance * np.sqrt(self.along)
        root = room / max(slope + np.sqrt(slope**2 + self.across * room), 1e-300)
        return float(1 / root / root) if root > 1e-150 else float("inf")


def norm_bound(gram: Array, alpha: float) -> NormBound:
    """The upper bound of ‖δ‖ with confidence 1 − ``alpha`` from the Gram matrix of A errors of means of equal groups.

    Args:
        gram: (group, group).

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
    """‖C‖_F and a bound of ‖C‖₂, C the covariance of the mean over all groups, from the groups' Gram matrix.

    ‖C‖_F² is Σ K_ab²/(A(A−3)) over a ≠ b, K centred without its diagonal, which makes it unbiased (Székely and Rizzo
    2014, U-centring): centring with the diagonal adds (tr C/A)², all there is in many dimensions. For ‖C‖₂ stands
    (tr C⁴)^(1/4) ≥ ‖C‖₂: the mean of K_ab K_bc K_cd K_da over four different groups, three standard errors
    (√8 ‖C‖_F⁴/A² each) added.
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
    """What look 1, 2, … may spend of ``alpha``: α/(k(k+1)), which adds up to α."""
    return alpha / (look * (look + 1))


def _off_diagonal(matrix: Array) -> Array:
    return matrix - np.diag(np.diagonal(matrix))


def _root(increasing: Callable[[float], float]) -> float:
    """Where a function of the half line, at most 0 at 0, reaches 0: bracketed within a factor of 2, then by Brent."""
    from scipy.optimize import brentq  # Takes as long to import as everything else here.

    high = 1.0
    while increasing(high) < 0:
        high *= 2
    while increasing(high / 2) > 0:
        high /= 2
    rounding = np.finfo(np.float64)
    return float(brentq(increasing, high / 2, high, xtol=rounding.tiny, rtol=4 * rounding.eps))
