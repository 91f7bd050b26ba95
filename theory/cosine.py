"""Mean cosine between one random direction, signed by its slope, and the gradient.

A guess ĝ = t y of a gradient g has cos(ĝ, g) = sign(t) y·g/(‖y‖‖g‖). In a separate pass t = y·g, and the cosine is
|cos(y, g)|. In a joint pass t = y·g + o with o ~ N(0, T_o) from the other layers, which may reverse the sign. Let
y ~ N(0, Σ), λ_i be the eigenvalues and v_i the eigenvectors of Σ, e_i = (v_iᵀg)², Π(u) = Π_i (1 + 2uλ_i)^(−½) and
v(u) = Σ e_i λ_i/(1 + 2uλ_i). Then

    E cos  = (1/(‖g‖√π)) ∫₀^∞ Π √(2/π) v/√(T_o + v) u^(−½) du         E cos² = (1/‖g‖²) ∫₀^∞ Π v du

Proof: 1/‖y‖ = π^(−½) ∫ e^(−u‖y‖²) u^(−½) du. Under the weight e^(−u‖y‖²) the slope w = y·g is N(0, v), and
E[w sign(w + o)] = √(2/π) v/√(T_o + v). T_o = 0 gives the integrand √(2v/π).

Integrals by `theory.quadrature`, to a relative 1e-10. Sources: docs/mathematics.md#cosine-of-one-direction; Imhof 1961
for such integrals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from theory.factors import Array
from theory.linear_guess import of_others
from theory.quadrature import log_nodes, log_trapezoid

LOG_STEP = 0.25  # of log u: errors of e^(−π²/0.25) = 7e-18


def isotropic(n: ArrayLike) -> Array:
    """E|cos| of a direction uniform in n dimensions: Γ(n/2)/(√π Γ((n+1)/2)), about √(2/(πn)).

    Raises ValueError for fewer than one dimension.
    """
    dims = _dimensions(n)
    cosine: Array = 1.0 / (np.sqrt(np.pi) * gamma_step(dims / 2))
    return cosine


def isotropic_square(n: ArrayLike) -> Array:
    """E cos² of a direction uniform in n dimensions: 1/n."""
    square: Array = 1.0 / _dimensions(n)
    return square


def in_range(k: ArrayLike, overlap: ArrayLike) -> Array:
    """E|cos| of a direction uniform in a k-dimensional range with overlap o = ‖V_kᵀg‖/‖g‖: o · isotropic(k)."""
    cosine: Array = np.asarray(overlap, np.float64) * isotropic(k)
    return cosine


def in_range_square(k: ArrayLike, overlap: ArrayLike) -> Array:
    """E cos² of a direction uniform in a k-dimensional range with overlap o: o²/k."""
    square: Array = np.asarray(overlap, np.float64) ** 2 * isotropic_square(k)
    return square


def dilution(layer: ArrayLike, whole: ArrayLike) -> Array:
    """E[t_l sign t]/E|t_l| = √(T_l/T): in the limit of many dimensions, the factor by which a joint pass reduces E cos.

    layer: T_l, the variance of the layer's part of the slope. whole: T ≥ T_l, that of the whole slope.
    """
    factor: Array = np.sqrt(np.asarray(layer, np.float64) / np.asarray(whole, np.float64))
    return factor


def gaussian(
    eigenvalues: Array,
    components: Array,
    squared_gradient: ArrayLike,
    others: ArrayLike = 0.0,
    counts: Array | None = None,
) -> Array:
    """E cos of one guess t y, y ~ N(0, Σ), (…).

    eigenvalues, components: λ_i of Σ and (v_iᵀg)², (…, mode). squared_gradient: ‖g‖² (…), which may exceed the sum of
    components. others: T_o (…), the variance of the other layers' slope. counts: how many dimensions each mode stands
    for (…, mode), 1 unless given; its component is that of all of them.

    NaN for a zero gradient and where every λ is zero: there is no direction.
    """
    others = np.asarray(others, np.float64)[..., None]

    def integrand(u: Array, decay: Array, variance: Array) -> Array:
        root = np.sqrt(np.where(variance > 0, others + variance, 1.0))
        return np.sqrt(2 * u) / np.pi * decay * variance / root

    return _integrated(integrand, eigenvalues, components, others, counts) / _root(squared_gradient)


def gaussian_square(
    eigenvalues: Array, components: Array, squared_gradient: ArrayLike, counts: Array | None = None
) -> Array:
    """E cos² of one guess t y, y ~ N(0, Σ), (…): arguments as in `gaussian`. The slope's sign does not matter."""

    def integrand(u: Array, decay: Array, variance: Array) -> Array:
        return u * decay * variance

    return _integrated(integrand, eigenvalues, components, np.zeros(1), counts) / _root(squared_gradient) ** 2


def of_one_example(spectra: Sequence[tuple[Array, Array]], weights: ArrayLike, squared_gradients: ArrayLike) -> float:
    """E cos of all layers of one joint pass in weight space, for a batch of one example.

    There ⟨ĝ_l, ĝ_l⟩_K = κ_l‖ĝ_l‖² with κ = ‖x‖², while the slope t = Σ_l y_l·g_l does not contain κ. Under e^(−u Σ
    κ‖y‖²), t and w = Σ κ_l y_l·g_l are Gaussian, and E[w sign t] = √(2/π) Cov(w, t)/√Var t:

        E cos = (1/(‖g‖_K √π)) ∫ Π_i (1 + 2uκλ_i)^(−½) √(2/π) c/√v u^(−½) du
        c = Σ κ e_i λ_i/(1 + 2uκλ_i)        v = Σ e_i λ_i/(1 + 2uκλ_i)

    spectra: eigenvalues and components (1, mode) of every layer. weights: κ (layer,). squared_gradients: ‖g_l‖². NaN
    without a gradient or a direction.
    """
    kappa, squares = np.asarray(weights, np.float64), np.asarray(squared_gradients, np.float64)
    values = np.concatenate([values[0] for values, _ in spectra])
    parts = np.concatenate([parts[0] for _, parts in spectra])
    each = np.concatenate([np.full(values.shape[1], k) for (values, _), k in zip(spectra, kappa, strict=True)])
    truth = float(kappa @ squares)
    seen = (values > 0) & (each > 0)
    if not truth > 0 or not np.any(seen & (parts > 0)):
        return float("nan")
    # Layers without weight are still in the slope: their variance does not fall with u.
    scaled = each * values
    trace, smallest = scaled.sum(), scaled[seen].min()
    u = np.exp(log_nodes(-18.0, 20.0 + np.log(trace / smallest), LOG_STEP))[:, None] / trace
    shrunk = parts * values / (1 + 2 * u * scaled)
    variance, covariance = shrunk.sum(1), (each * shrunk).sum(1)
    decay = np.exp(-0.5 * np.log1p(2 * u * scaled).sum(1))
    integrand = np.sqrt(2 * u[:, 0]) / np.pi * decay * covariance / np.sqrt(variance)
    return float(log_trapezoid(integrand, LOG_STEP) / np.sqrt(truth))


def weight_perturbation(squared_norms: ArrayLike, sizes: ArrayLike) -> Array:
    """E cos of Ĝ_l = t V_l in weight space, V Gaussian, one joint pass: (layer + 1,), all layers together last.

    squared_norms: ‖G_l‖² (layer,). sizes: P_l (layer,). With separate passes each layer has isotropic(P_l), and all
    together `theory.batch_cosine.mean_cosine`.
    """
    squares, dims = np.asarray(squared_norms, np.float64), np.asarray(sizes, np.float64)
    others = of_others(squares[:, None], "example", "joint")[:, 0]
    layers = gaussian(np.ones((len(squares), 1)), squares[:, None], squares, others, dims[:, None])
    whole = isotropic(dims.sum()) if squares.sum() > 0 else np.float64(np.nan)
    return np.append(layers, whole)


def gamma_step(x: ArrayLike) -> Array:
    """Γ(x + ½)/Γ(x), for large x by its asymptotic series, since a difference of log Γ loses its digits there."""
    value = np.asarray(x, np.float64)
    series = (1, -1 / 8, 1 / 128, 5 / 1024, -21 / 32768, -399 / 262144)
    large = np.maximum(value, 50.0)
    small = np.minimum(value, 50.0)
    ratio: Array = np.where(
        value > 50.0,
        np.sqrt(large) * np.polynomial.polynomial.polyval(1 / large, series),
        np.exp(special.gammaln(small + 0.5) - special.gammaln(small)),
    )
    return ratio


def _integrated(
    integrand: Callable[[Array, Array, Array], Array],
    eigenvalues: Array,
    components: Array,
    others: Array,
    counts: Array | None,
) -> Array:
    """∫ integrand d log u, (…); the integrand gets u, Π(u) and v(u), (…, node) each. NaN where every λ is zero."""
    each = np.ones_like(eigenvalues) if counts is None else np.broadcast_to(counts, eigenvalues.shape)
    trace = np.sum(each * eigenvalues, axis=-1, keepdims=True)
    seen = eigenvalues > 0
    if not np.any(seen):
        return np.full(eigenvalues.shape[:-1], np.nan)
    trace = np.where(trace > 0, trace, 1.0)
    # The range has to reach past the smallest eigenvalue and past the place where v(u) falls below T_o.
    spread = np.max(np.where(seen, trace / np.where(seen, eigenvalues, 1.0), 1.0))
    most = np.sum(components * eigenvalues, axis=-1, keepdims=True)
    spread *= np.max(1.0 + np.divide(most, others, out=np.zeros(np.broadcast(most, others).shape), where=others > 0))
    u = np.exp(log_nodes(-18.0, 20.0 + np.log(spread), LOG_STEP)) / trace
    log_decay, variance = np.zeros_like(u), np.zeros_like(u)
    for mode in range(eigenvalues.shape[-1]):
        value = eigenvalues[..., mode, None]
        log_decay -= 0.5 * each[..., mode, None] * np.log1p(2 * u * value)
        variance += components[..., mode, None] * value / (1 + 2 * u * value)
    integral = log_trapezoid(integrand(u, np.exp(log_decay), variance), LOG_STEP)
    return np.where(np.any(seen, axis=-1), integral, np.nan)


def _root(squared_gradient: ArrayLike) -> Array:
    square = np.asarray(squared_gradient, np.float64)
    return np.where(square > 0, np.sqrt(np.maximum(square, 0.0)), np.nan)


def _dimensions(n: ArrayLike) -> Array:
    dims = np.asarray(n, np.float64)
    if np.any(dims < 1):
        raise ValueError(f"n must be at least 1, got {dims}")
    return dims
