"""How heavy the tail of a sample is: the shape k of a generalised Pareto law fitted to its largest values.

Beyond a high cutoff u the excess x − u of nearly every law has, in the limit, the density (1 + k x/σ)^(−1−1/k)/σ
(Pickands 1975). Moments of order 1/k and above do not exist. From k = 1/2 on there is no variance, so a mean has no
standard error, and its interval does not have the stated coverage. This holds in the limit; a sample shows the tail
only as far as its largest values. A log-normal law has all moments, but a sample of it has k̂ > 1/2 until there are
very many values, and its intervals are too short until then.

The fit is that of Zhang and Stephens 2009, Technometrics 51, 316–325: a quasi-Bayesian estimate, in which k is the mean
of log(1 − b x) at the mean of b under its profile likelihood. The number of values in the tail, the prior of ten values
with k = 1/2 and the use of both tails are those of Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25(72), and so
are the constants. So k̂ is that of ArviZ and of R's packages loo and posterior, with the same sign. NumPy arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HEAVY = 0.5  # From this k̂ on the variance does not exist.
TAIL_SHARE, TAIL_ROOTS = 0.2, 3.0  # A tail is min(n/5, 3√n) values on each side,
LEAST_IN_TAIL = 5  # at least this many.
PRIOR_VALUES, PRIOR_SHAPE = 10, 0.5
CANDIDATES = 30  # Number of candidates for b, to which √n are added.
SPREAD = 3.0  # Spread of the candidates, in units of 1/(first quartile of the tail): the prior of Zhang and Stephens.


def tail_shape(values: Array) -> Array:
    """k̂ of the heavier of both tails over the last axis, (…).

    NaN for fewer than 25 values, where a value is NaN, or where neither tail varies. ∞ where a tail consists of fewer
    than five values beyond many equal ones, as for a rare event, so that its shape cannot be estimated.
    """
    n = values.shape[-1]
    in_tail = int(min(TAIL_SHARE * n, TAIL_ROOTS * np.sqrt(n)))
    if in_tail < LEAST_IN_TAIL:
        return np.full(values.shape[:-1], np.nan)
    ordered = np.partition(values, (in_tail, n - 1 - in_tail), axis=-1)
    high = ordered[..., n - in_tail :] - ordered[..., n - 1 - in_tail, None]
    low = ordered[..., in_tail, None] - ordered[..., :in_tail]
    # Values that differ only by rounding have no tail.
    rounding = 1e-12 * np.abs(values).max(-1)
    shape: Array = np.fmax(_shape_of(high, rounding), _shape_of(low, rounding))
    return shape


def _shape_of(excess: Array, rounding: Array) -> Array:
    """k̂ of the excesses (…, value) over a cutoff; excesses of zero are values equal to the cutoff and do not count."""
    excess = np.sort(excess, axis=-1)
    in_tail, most = excess.shape[-1], excess[..., -1]
    varies = most > rounding
    x = np.clip(excess / np.where(varies, most, 1.0)[..., None], 0.0, 1.0)
    counted = (x > 1e-12).sum(-1)
    enough = varies & (counted >= LEAST_IN_TAIL)
    number = np.where(enough, counted, in_tail)
    first_quartile = np.maximum((number / 4 + 0.5).astype(int), 1) - 1 + in_tail - number
    quartile = np.take_along_axis(x, first_quartile[..., None], axis=-1)
    candidates = CANDIDATES + int(np.sqrt(in_tail))
    places = 1 - np.sqrt(candidates / (np.arange(1, candidates + 1) - 0.5))
    b = 1.0 + places / (SPREAD * np.where(enough[..., None], quartile, 1.0))

    def shape(b: Array) -> Array:
        """Mean of log(1 − b x) over the values that count: the others add zero."""
        total: Array = np.log1p(-b[..., None] * x[..., None, :]).sum(-1) / number[..., None]
        return total

    with np.errstate(divide="ignore", invalid="ignore"):
        k = shape(b)
        likelihood = number[..., None] * (np.log(-b / k) - k - 1)
    # The candidate b = 0 is an exponential tail; its neighbours represent it.
    likelihood = np.where(np.isnan(likelihood), -np.inf, likelihood)
    likelihood = np.where(enough[..., None], likelihood, 0.0)
    weights = np.exp(likelihood - likelihood.max(-1, keepdims=True))
    mean_b = (b * weights).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
    k_hat = (number * shape(mean_b)[..., 0] + PRIOR_VALUES * PRIOR_SHAPE) / (number + PRIOR_VALUES)
    return np.where(enough, k_hat, np.where(varies, np.inf, np.nan))
