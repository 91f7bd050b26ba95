"""What rounding leaves of a perturbation of weights: θ + εz, then − 2εz, then + εz, in place, at a finite precision.

Numbers of d binary digits lie on a grid of spacing h(x) = 2^(e−d) for 2^(e−1) ≤ |x| < 2^e, and every operation rounds
to the nearest of them. In units of h = h(θ) let θ = n and εz = u = k + f, k the nearest whole number. Where θ ± εz have
the spacing of θ,

    θ₁ = n + k      θ₂ = n + k − round(2u) = n − k − round(2f)      θ₃ = n − round(2f):   0 for |f| < ¼, else ∓1

so the weight moves by h with probability P(¼ < |f| ≤ ½). With z ~ N(0, 1), and s = ε/h,

    E drift² = h² D(s),   D(s) = 2 Σ_k [Φ((k+¾)/s) − Φ((k+¼)/s)]   → ½ for s ≫ 1,  → 0 for s ≪ ¼

Where θ + εz or θ − εz has another spacing, a·h or b·h with a and b powers of two, f and n are taken as uniform, and
E drift² = h² C(a, b) is the mean of the same three roundings over one period of both; C(1, 1) = ½. For large a and b
both roundings are independent of θ, and C → (a² + b²)/12. Derivation: docs/mathematics.md#finite-differences.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import special

from theory.factors import Array

LARGEST_POWER = 4  # Of two, in a and b; larger spacings have the limit.
SMALLEST_POWER = -3  # Finer grids than this round as little as nothing.
OFFSETS = 64  # Of u within a period, the middle of equal parts.
QUANTILES = 16  # Of z.
NARROW = 0.5  # Steps below so many spacings are not uniform on the grid.


def spacing(numbers: Array, digits: int, least: float) -> Array:
    """h(x), in the shape of the numbers: digits binary digits, and never less than ``least``, that near zero."""
    exponents = np.frexp(np.abs(numbers))[1]
    # Zero has no exponent of its own, and np.frexp gives it that of numbers near 1.
    return np.where(numbers == 0, least, np.maximum(np.ldexp(1.0, exponents - digits), least))


def same_spacing(ratio: Array) -> Array:
    """D(s) of s = ε/h, in its shape."""
    s = np.asarray(ratio, np.float64)
    safe = np.clip(s, 1e-6, 4.0)  # At s = 4 the sum is ½ to 1e-30, by the Fourier series of what is summed.
    k = np.arange(40.0)
    sums = special.ndtr(-(k + 0.25) / safe[..., None]) - special.ndtr(-(k + 0.75) / safe[..., None])
    return np.where(s >= 4, 0.5, 2 * sums.sum(-1))


def other_spacing(a: float, b: float) -> float:
    """C(a, b), by the three roundings of a weight n at steps u, over a period of both."""
    period = int(max(a, b, 1))
    n = np.arange(period, dtype=np.float64)[:, None]
    u = (np.arange(OFFSETS * period) + 0.5) / OFFSETS
    first = a * np.rint((n + u) / a)
    second = b * np.rint((first - 2 * u) / b)
    return float(np.mean((np.rint(second + u) - n) ** 2))


def squared_drift(weights: Array, epsilon: float, digits: int, least: float) -> Array:
    """E drift² of every weight, (weight,), unit of weight squared, for z ~ N(0, 1).

    weights: (weight,), numbers of the precision. digits: of it. least: its least spacing, that near zero.
    """
    h = spacing(weights, digits, least)
    narrow = same_spacing(epsilon / h)
    table = _table()
    total = np.zeros_like(h)
    for z in special.ndtri((np.arange(QUANTILES) + 0.5) / QUANTILES):
        a, b = (spacing(weights + sign * epsilon * z, digits, least) / h for sign in (1, -1))
        # Below that a step hardly reaches the next number, whatever the spacing on the other side of it is.
        same = ((a == 1) & (b == 1)) | (epsilon < NARROW * h)
        places = [np.clip(np.frexp(x)[1] - 1, SMALLEST_POWER, LARGEST_POWER) - SMALLEST_POWER for x in (a, b)]
        beyond = np.maximum(a, b) > 2.0**LARGEST_POWER
        total += np.where(same, narrow, np.where(beyond, (a**2 + b**2) / 12, table[places[0], places[1]]))
    result: Array = h**2 * total / QUANTILES
    return result


@functools.cache
def _table() -> Array:
    """C(a, b) for all powers of two from the smallest to the largest."""
    powers = 2.0 ** np.arange(SMALLEST_POWER, LARGEST_POWER + 1)
    return np.array([[other_spacing(a, b) for b in powers] for a in powers])


def unmoved(weights: Array, epsilon: float, digits: int, least: float) -> Array:
    """P(fl(θ + εz) = θ) of every weight, (weight,): |εz| is below half of the spacing, z ~ N(0, 1)."""
    half = spacing(weights, digits, least) / (2 * epsilon)
    result: Array = special.ndtr(half) - special.ndtr(-half)
    return result
