"""The mean of k forward gradients: Ĝ = (1/k) Σ_i (v_i·G) v_i, v_i independent tangents of n entries.

    E Ĝ = G        E‖Ĝ − G‖² = (n + κ − 2)/k · ‖G‖²        E‖Ĝ‖² = (1 + (n + κ − 2)/k)‖G‖²

for independent entries of fourth moment κ; in general n·pair + fourth − pair − 1 stands for n + κ − 2. It is unbiased,
and for k < n far from the gradient: the projection on the same tangents (`theory.projection`) leaves (1 − k/n)‖G‖².
Shrunk by the best scale 1/(1 + (n + κ − 2)/k) it leaves (n + κ − 2)/(n + κ − 2 + k).

For Gaussian tangents the slopes are ‖G‖z, z ~ N(0, I_k). The guess is ‖z‖²/k · G along G and, across it and given z, a
Gaussian vector of n − 1 entries of deviation ‖z‖‖G‖/k, so its cosine is ‖z‖/√(‖z‖² + χ²_{n−1}):

    cos² ~ Beta(k/2, (n−1)/2)       E cos = Γ((k+1)/2) Γ((n+k−1)/2) / (Γ(k/2) Γ((n+k)/2))       E cos² = k/(n+k−1)

Its norm is ‖G‖/k · cos · S with S = ‖z‖² + χ²_{n−1} ~ χ²_{n+k−1} independent of the cosine (as a share of a sum of
gammas is of the sum), so E‖Ĝ‖/‖G‖ = (n + k − 1)/k · E cos.

Sources: Flügel et al. 2024; MATH.md §3, §5; the laws of cosine and norm are derived here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from theory import weight_perturbation
from theory.cosine import gamma_step
from theory.factors import Array
from theory.linear_guess import Layers


def mean_square_error(k: ArrayLike, n: ArrayLike, fourth: float = 3.0, pair: float = 1.0) -> Array:
    """E‖Ĝ − G‖²/‖G‖² = (n pair + fourth − pair − 1)/k. Raises ValueError for k below 1."""
    tangents = _checked(k)
    found: Array = (np.asarray(n, np.float64) * pair + fourth - pair - 1) / tangents
    return found


def efficiency(k: ArrayLike, n: ArrayLike, fourth: float = 3.0, pair: float = 1.0) -> Array:
    """⟨E Ĝ, G⟩²/(‖G‖² E‖Ĝ‖²) = 1/(1 + mse): also the best scale of the guess. Raises ValueError for k below 1."""
    found: Array = 1.0 / (1.0 + mean_square_error(k, n, fourth, pair))
    return found


def mean_cosine(k: ArrayLike, n: ArrayLike) -> Array:
    """E cos of the mean of k Gaussian tangents of n entries. Raises ValueError for k or n below 1."""
    tangents, dims = _checked(k), _checked(n)
    found: Array = gamma_step(tangents / 2) / gamma_step((dims + tangents - 1) / 2)
    return found


def mean_square_cosine(k: ArrayLike, n: ArrayLike) -> Array:
    """E cos² of the mean of k Gaussian tangents of n entries: k/(n + k − 1). Raises ValueError for k or n below 1."""
    tangents, dims = _checked(k), _checked(n)
    found: Array = tangents / (dims + tangents - 1)
    return found


def mean_norm_ratio(k: ArrayLike, n: ArrayLike) -> Array:
    """E‖Ĝ‖/‖G‖ of the mean of k Gaussian tangents of n entries. Raises ValueError for k or n below 1."""
    tangents, dims = _checked(k), _checked(n)
    found: Array = (dims + tangents - 1) / tangents * mean_cosine(tangents, dims)
    return found


def second_moments(
    squared_norms: ArrayLike,
    sizes: Sequence[int],
    k: int,
    fourth: Sequence[float],
    pair: Sequence[float],
    *,
    layers: Layers,
) -> Array:
    """E‖Ĝ_l‖² (layer,) of the mean of k guesses by weight perturbation, whose arguments these are.

    The variance is a k-th of one guess's. Raises ValueError for k below 1 and for what does not fit.
    """
    own = np.asarray(squared_norms, np.float64)
    single = weight_perturbation.second_moments(own, sizes, fourth, pair, layers=layers)
    found: Array = own + (single - own) / _checked(k)
    return found


def _checked(number: ArrayLike) -> Array:
    found = np.asarray(number, np.float64)
    if np.any(found < 1):
        raise ValueError(f"k and n must be at least 1, got {found}")
    return found
