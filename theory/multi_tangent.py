"""The mean of k forward gradients: Ĝ = (1/k) Σ_i (v_i·G) v_i, v_i independent tangents of n entries.

    E Ĝ = G        E‖Ĝ − G‖² = (n + κ − 2)/k · ‖G‖²        E‖Ĝ‖² = (1 + (n + κ − 2)/k)‖G‖²

for independent entries of fourth moment κ; in general n·pair + fourth − pair − 1 replaces n + κ − 2. The guess is
unbiased, but for k far below n its error is much larger than the gradient. The projection on the same tangents
(`theory.projection`) has the mean squared error (1 − k/n)‖G‖². Shrinking by the best scale 1/(1 + (n + κ − 2)/k)
reduces the mean squared error to (n + κ − 2)/(n + κ − 2 + k) ‖G‖².

For Gaussian tangents the slopes are ‖G‖z with z ~ N(0, I_k). The component of the guess along G is ‖z‖²/k · G. Given z,
the part across G is a Gaussian vector of n − 1 entries with standard deviation ‖z‖‖G‖/k. So the cosine is
‖z‖/√(‖z‖² + χ²_{n−1}):

    cos² ~ Beta(k/2, (n−1)/2)       E cos = Γ((k+1)/2) Γ((n+k−1)/2) / (Γ(k/2) Γ((n+k)/2))       E cos² = k/(n+k−1)

The norm is ‖G‖/k · cos · S with S = ‖z‖² + χ²_{n−1} ~ χ²_{n+k−1}. S is independent of the cosine, as the share of a
gamma variable in a sum is independent of the sum. So E‖Ĝ‖/‖G‖ = (n + k − 1)/k · E cos.

**One layer of a joint pass.** Let ρ = ‖G_l‖/‖G‖, σ² = 1 − ρ², and u be the component of the layer's slopes along the
vector of all slopes. Up to a common positive factor, Ĝ_l has the component u along G_l, and a part of length χ_m across
it, in m = P_l − 1 dimensions. With ν ~ N(0, 1), u = ρ χ_k + σ ν and

    P(⟨ĝ_l, G_l⟩ > 0) = P(u > 0) = F_k(ρ√k/σ),  F_k Student's t with k degrees of freedom
    E cos = E u/√(u² + χ_m²) = (ρ E χ_k/√π) ∫₀^∞ s^(−½) (1 + 2s)^(−(m+k+1)/2) (1 + 2sσ²)^((k−2)/2) ds

by 1/√x = π^(−½) ∫ e^(−sx) s^(−½) ds and the Gaussian mean of u e^(−su²) given χ_k. k = 1 is weight perturbation. The
mean of m guesses of k tangents is a guess of m k tangents.

Sources: Flügel et al. 2024; docs/mathematics.md#mean-of-tangents; the laws of cosine and norm are derived here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from theory import batch_cosine, weight_perturbation
from theory.cosine import gamma_step
from theory.factors import Array
from theory.linear_guess import Layers, check_switches, of_others
from theory.quadrature import log_nodes, log_trapezoid

LOG_STEP = 0.25  # of log s: errors of e^(−π²/0.25)


def mean_square_error(k: ArrayLike, n: ArrayLike, fourth: float = 3.0, pair: float = 1.0) -> Array:
    """E‖Ĝ − G‖²/‖G‖² = (n pair + fourth − pair − 1)/k. Raises ValueError for k below 1."""
    tangents = _checked(k)
    error: Array = (np.asarray(n, np.float64) * pair + fourth - pair - 1) / tangents
    return error


def efficiency(k: ArrayLike, n: ArrayLike, fourth: float = 3.0, pair: float = 1.0) -> Array:
    """⟨E Ĝ, G⟩²/(‖G‖² E‖Ĝ‖²) = 1/(1 + mse): also the best scale of the guess. Raises ValueError for k below 1."""
    efficiency: Array = 1.0 / (1.0 + mean_square_error(k, n, fourth, pair))
    return efficiency


def mean_cosine(k: ArrayLike, n: ArrayLike) -> Array:
    """E cos of the mean of k Gaussian tangents of n entries. Raises ValueError for k or n below 1."""
    tangents, dims = _checked(k), _checked(n)
    cosine: Array = gamma_step(tangents / 2) / gamma_step((dims + tangents - 1) / 2)
    return cosine


def cosines(squared_norms: ArrayLike, sizes: Sequence[int], k: int, *, layers: Layers) -> Array:
    """E cos of Ĝ_l and of all layers together, (layer + 1,); Gaussian tangents.

    squared_norms: ‖G_l‖² (layer,). sizes: P_l. NaN for a layer without a gradient. In separate passes with k > 1 the
    cosine of all layers together is NaN too, because it would take an integral over two variables for each layer.
    """
    check_switches("batch", layers)
    squares, dims = np.asarray(squared_norms, np.float64), np.asarray(sizes, np.float64)
    seen = squares > 0
    if layers == "separate":
        if k == 1:
            return batch_cosine.separate_weight_perturbation(squares, dims)
        return np.append(np.where(seen, mean_cosine(k, dims), np.nan), np.nan)
    along, across = _shares(squares)
    parts = zip(along, across, dims, seen, strict=True)
    layer_cosines = [_layer_cosine(rho, sigma, size, k) if known else np.nan for rho, sigma, size, known in parts]
    whole = float(mean_cosine(k, dims.sum())) if seen.any() else np.nan
    return np.array([*layer_cosines, whole])


def descent_probabilities(squared_norms: ArrayLike, k: int, *, layers: Layers) -> Array:
    """P(⟨Ĝ_l, G_l⟩ > 0) and for all layers together, (layer + 1,); Gaussian tangents. NaN without a gradient."""
    check_switches("batch", layers)
    squares = np.asarray(squared_norms, np.float64)
    along, across = _shares(squares)
    ratio = np.divide(along * np.sqrt(k), across, out=np.full_like(along, np.inf), where=across > 0)
    each = special.stdtr(k, ratio) if layers == "joint" else np.ones_like(squares)
    return np.append(np.where(squares > 0, each, np.nan), 1.0 if squares.sum() > 0 else np.nan)


def _shares(squares: Array) -> tuple[Array, Array]:
    """ρ and σ of every layer."""
    whole = squares.sum() if squares.sum() > 0 else 1.0
    return np.sqrt(squares / whole), np.sqrt(of_others(squares[:, None], "example", "joint")[:, 0] / whole)


def _layer_cosine(along: float, across: float, size: float, k: int) -> float:
    decay, growth = (size + k) / 2, (k - 2) / 2  # size = m + 1
    x = log_nodes(-40.0 - np.log(decay), 40.0, LOG_STEP)
    s = np.exp(x)
    values = np.exp(x / 2 - decay * np.log1p(2 * s) + growth * np.log1p(2 * s * across**2))
    return float(along * np.sqrt(2 / np.pi) * gamma_step(k / 2) * log_trapezoid(values, LOG_STEP))


def mean_square_cosine(k: ArrayLike, n: ArrayLike) -> Array:
    """E cos² of the mean of k Gaussian tangents of n entries: k/(n + k − 1). Raises ValueError for k or n below 1."""
    tangents, dims = _checked(k), _checked(n)
    square: Array = tangents / (dims + tangents - 1)
    return square


def mean_norm_ratio(k: ArrayLike, n: ArrayLike) -> Array:
    """E‖Ĝ‖/‖G‖ of the mean of k Gaussian tangents of n entries. Raises ValueError for k or n below 1."""
    tangents, dims = _checked(k), _checked(n)
    ratio: Array = (dims + tangents - 1) / tangents * mean_cosine(tangents, dims)
    return ratio


def second_moments(
    squared_norms: ArrayLike,
    sizes: Sequence[int],
    k: int,
    fourth: Sequence[float],
    pair: Sequence[float],
    *,
    layers: Layers,
) -> Array:
    """E‖Ĝ_l‖² (layer,) of the mean of k guesses by weight perturbation, in (loss per unit of weight)².

    The variance is 1/k of that of one guess. Other arguments as in `theory.weight_perturbation.second_moments`. Raises
    ValueError for k below 1 and as that function.
    """
    squares = np.asarray(squared_norms, np.float64)
    single = weight_perturbation.second_moments(squares, sizes, fourth, pair, layers=layers)
    moments: Array = squares + (single - squares) / _checked(k)
    return moments


def _checked(number: ArrayLike) -> Array:
    numbers = np.asarray(number, np.float64)
    if np.any(numbers < 1):
        raise ValueError(f"k and n must be at least 1, got {numbers}")
    return numbers
