"""The rescaled upstream guess of Singhal et al. 2023: every example's direction has the norm √n, with n units.

    y_l,b = √n Jᵀε/‖Jᵀε‖,  ε ~ N(0, I);   the output tap draws ε itself and is not rescaled;   ĝ = t y

**Moments of the direction.** Let V be the eigenvectors of JᵀJ and λ_i > 0 its eigenvalues. Then y = √n V ẑ with
ẑ_i = √λ_i z_i/√r, r = Σ_j λ_j z_j² and independent standard normal z. Both powers of 1/r are integrals,
1/r = ∫₀^∞ e^(−ur) du and 1/r² = ∫₀^∞ u e^(−ur) du. The weight e^(−ur) has the mean Π(u) = Π_j (1 + 2uλ_j)^(−½). Under
this weight √λ_i z_i is still Gaussian, with the variance m_i(u) = λ_i/(1 + 2uλ_i). So

    E ẑ_i² = ∫ Π m_i du                     E (c·ẑ)² (v·ẑ)² = ∫ u Π [Σ c_i² m_i Σ v_i² m_i + 2 (Σ c_i v_i m_i)²] du

**Moments of the guess.** The mean is E ĝ = Q g with Q = n V diag(E ẑ²) Vᵀ. As ‖y‖² = n does not vary,
E‖ĝ‖² = n E t² = n T with T = Σ_l g_lᵀ Q_l g_l. Only the second moments of single entries need the fourth moments of ẑ.
A Jacobian of zeros gives a guess of zeros.

Sources: docs/mathematics.md#rescaled-upstream-guess; Singhal et al. 2023 for the guess. The moments are derived here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from theory.factors import Array
from theory.linear_guess import Layers, Moments, Slope, check_switches, independent_covariances, of_others
from theory.quadrature import log_nodes, log_trapezoid
from theory.upstream import singular_triplets

NORMALISED_LOG_STEP = 0.3  # step of log u: the error of a sum is e^(−π²/0.3) = 5e-15


def moments(
    gradients: Sequence[Array],
    weights: Sequence[Array],
    derivatives: Sequence[Array],
    *,
    fourth: float = 3.0,
    pair: float = 1.0,
    shared: bool = False,
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    """Mean and second moments of one guess with rotation-invariant noise, a `Moments` for each layer.

    gradients: g_l (example, unit), loss per unit of activation, the output tap last. weights, derivatives: W_{l+1}
    (next_unit, unit) and φ' (example, unit) of every tap but the last. fourth, pair: the fourth-order moments of the
    noise of the output tap; at the other taps the length of the noise does not matter. shared, slope, layers: the
    switches of docs/notation.md#the-three-switches.

    Shared noise does not change the distribution of the guess of a single example, so mean and variances stay the same.
    The covariance of the guesses of two examples has no closed form and is NaN.

    Raises ValueError for unknown switches; for shared noise with the batch slope, whose mean has no closed form; for
    noise that is not rotation-invariant (fourth ≠ 3 pair); and for sequences of lengths that do not fit.
    """
    if not len(gradients) - 1 == len(weights) == len(derivatives):
        raise ValueError(
            "weights and derivatives must have one entry for every tap but the last, "
            f"got {len(weights)} and {len(derivatives)} for {len(gradients)} taps"
        )
    triplets = [singular_triplets(*layer) for layer in zip(weights, derivatives, strict=True)]
    spectra = [(values, vectors) for _, values, vectors in triplets]
    return moments_of(gradients, [*spectra, None], fourth=fourth, pair=pair, shared=shared, slope=slope, layers=layers)


def moments_of(
    gradients: Sequence[Array],
    spectra: Sequence[tuple[Array, Array] | None],
    *,
    fourth: float = 3.0,
    pair: float = 1.0,
    shared: bool = False,
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    """As `moments`, of any Jacobians by their singular values (example, mode) and right singular vectors.

    spectra: (values, vectors (example, unit, mode)) a tap; None for an output tap.
    """
    check_switches(slope, layers)
    if shared and slope == "batch" and len(gradients[-1]) > 1:
        raise ValueError("shared noise with the batch's slope has no closed form: its mean holds products of examples")
    if abs(fourth - 3 * pair) > 1e-12:
        raise ValueError("rescaled directions have a closed form for rotation-invariant noise only: fourth = 3 pair")
    parts = [
        _plain(gradient, pair) if spectrum is None else _rescaled(gradient, *spectrum)
        for gradient, spectrum in zip(gradients, spectra, strict=True)
    ]
    strengths = np.stack(
        [np.sum(gradient * mean, axis=1) for gradient, (mean, _, _) in zip(gradients, parts, strict=True)]
    )
    others = of_others(strengths, slope, layers)
    moments = []
    for layer, (mean, diagonal, squares) in enumerate(parts):
        variances = np.maximum(others[layer][:, None] * diagonal + squares - mean**2, 0.0)
        covariances = independent_covariances(mean, variances, slope)
        if shared and len(mean) > 1:
            covariances[~np.eye(len(mean), dtype=bool)] = np.nan
        moments.append(Moments(mean, variances, covariances))
    return moments


def unit_squares(eigenvalues: Array) -> Array:
    """E ẑ_i² of the direction of N(0, diag(λ)), (mode,). The sum is 1, or 0 where all λ are zero."""
    u, decay, parts = _tilted(eigenvalues)
    return log_trapezoid((parts * (u * decay)[:, None]).T, NORMALISED_LOG_STEP)


def _plain(gradient: Array, pair: float) -> tuple[Array, Array, Array]:
    """Mean, E y_u² and E (y·g)² y_u² where y is the rotation-invariant noise itself, (example, unit) each."""
    square = np.sum(gradient**2, axis=1, keepdims=True)
    return gradient, np.ones_like(gradient), pair * (square + 2 * gradient**2)


def _rescaled(gradient: Array, values: Array, vectors: Array) -> tuple[Array, Array, Array]:
    """Mean, E y_u² and E (y·g)² y_u² of the rescaled direction, (example, unit) each."""
    units = gradient.shape[1]
    mean, diagonal, squares = (np.zeros_like(gradient) for _ in range(3))
    for example, (value, vector) in enumerate(zip(values, vectors, strict=True)):
        u, decay, parts = _tilted(value**2)
        components = gradient[example] @ vector
        unit_square = log_trapezoid((parts * (u * decay)[:, None]).T, NORMALISED_LOG_STEP)
        mean[example] = units * vector @ (unit_square * components)
        diagonal[example] = units * vector**2 @ unit_square
        pairs = (vector**2 @ parts.T) * (parts @ components**2) + 2 * (vector @ (parts * components).T) ** 2
        squares[example] = units**2 * log_trapezoid(pairs * (u**2 * decay), NORMALISED_LOG_STEP)
    return mean, diagonal, squares


def _tilted(eigenvalues: Array) -> tuple[Array, Array, Array]:
    """Nodes u (node,), Π(u) (node,) and m_i(u) (node, mode)."""
    trace = eigenvalues.sum()
    if trace == 0:
        return np.ones(2), np.zeros(2), np.zeros((2, len(eigenvalues)))
    smallest = eigenvalues[eigenvalues > 0].min()
    u = np.exp(log_nodes(-18.0, 20.0 + np.log(trace / smallest), NORMALISED_LOG_STEP)) / trace
    grown = 1 + 2 * u[:, None] * eigenvalues
    return u, np.exp(-0.5 * np.sum(np.log(grown), axis=1)), eigenvalues / grown
