"""Bias and variance of the upstream guesses from energy curves, for every k at once.

A guess ĝ = t y of the gradient g has a direction y ~ N(0, Σ), independent for every layer and example, and t is the
slope of the same example. Let T = Σ_l gᵀΣg, over all layers in a joint pass and over the one layer in separate passes.
Then, for each example,

    ⟨E ĝ, g⟩ = gᵀΣg        ‖E ĝ‖² = ‖Σg‖²        tr Cov ĝ = T tr Σ + ‖Σg‖²

                          Σ          gᵀΣg           ‖Σg‖²          tr Σ
    orthogonal upstream   V_kV_kᵀ    o_k²‖g‖²       o_k²‖g‖²       min(k, rank)
    upstream (W̃ᵀ)         JᵀJ        Σ_i σ_i² c_i   Σ_i σ_i⁴ c_i   Σ_i σ_i²        c_i = (v_iᵀg)²
    output tap of both    I          ‖g‖²           ‖g‖²           its units

**Spaces.** In activation space, sums of these terms over examples and layers give every quantity. In weight space,
where inner products are weighted by K = XXᵀ, they give only the variance, Σ_b ‖x_b‖² tr Cov ĝ_b. Bias, mse, efficiency
and best scale also contain inner products of the mean guesses of *different* examples. `theory.weight_cross_terms`
computes those from the vectors.

**Not covered.** The noise is Gaussian: another fourth moment κ adds (κ−3) Σ_j (A_jᵀg)²‖A_j‖² to the variance, with
Σ = AAᵀ, and a spectrum does not determine A. Nor is noise that examples share, or one slope for the whole batch.

**Equal singular values** leave V_k undetermined for a k that takes only some of them. If the curve rises linearly there
(and the cross terms allow for it), squared bias, variance and mse are means over random bases of the span, drawn
independently for each example, because all three are linear in the V_kV_kᵀ of an example. Efficiency and best scale are
ratios and not such means. They belong to a guess that draws a new basis every time, for which ⟨ḡ, g⟩ and E‖ĝ‖² are
these means.

Squared gradients are in (loss per unit of activation)². Raises ValueError for shapes that do not fit, for NaN or
infinite entries, and for numbers that no gradient or spectrum has. Sources: docs/mathematics.md#linear-guesses,
docs/mathematics.md#energy-curves; Wang et al. 2025; Singhal et al. 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from theory.energy_curves import Array, Counts, Output, OverlapCurve, UpstreamSpectrum, check_not_negative
from theory.weight_cross_terms import CrossTerms

Layers = Literal["joint", "separate"]


@dataclass(frozen=True)
class GuessTerms:
    """The terms of tr Cov, each (layer, setting, example); the output tap is the last layer.

    A setting is one choice of k, or of a k for each layer. Source: docs/mathematics.md#total-variance.

    Attributes:
        inner: gᵀΣg. mean_square: ‖Σg‖². trace: tr Σ.
        squared_gradient: ‖g‖², (layer, example).
    """

    inner: Array
    mean_square: Array
    trace: Array
    squared_gradient: Array

    def variance(self, layers: Layers = "joint") -> Array:
        """tr Cov ĝ of every layer and example, (layer, setting, example)."""
        if layers not in ("joint", "separate"):
            raise ValueError(f"layers must be 'joint' or 'separate', got {layers!r}")
        slope = self.inner.sum(0, keepdims=True) if layers == "joint" else self.inner
        return slope * self.trace + self.mean_square


@dataclass(frozen=True)
class Quantities:
    """The quantities reported of one guess (docs/mathematics.md#reported-quantities), each (layer, setting).

    Layers are the taps in order, the output tap, then all together. Efficiency and best scale are NaN where the
    gradient or the guess is zero.
    """

    squared_bias: Array
    variance: Array
    mse: Array
    efficiency: Array
    best_scale: Array


def orthogonal_terms(curves: Sequence[OverlapCurve], output: Output, ks: Counts) -> GuessTerms:
    """The terms of the orthogonal upstream guess for many k at once.

    curves: one for each hidden layer, in order. ks: (setting,) for the same k in every layer, or (setting, layer).
    Raises ValueError for a k below 1, and for a k beyond the end of a curve that does not reach the rank.
    """
    settings = np.asarray(ks)
    if settings.ndim == 1:
        settings = np.repeat(settings[:, None], len(curves), axis=1)
    if settings.ndim != 2 or settings.shape[1] != len(curves) or settings.size == 0:
        raise ValueError(f"ks must be (setting,) or (setting, {len(curves)}), got the shape {np.shape(ks)}")
    if settings.min() < 1:
        raise ValueError(f"k must be at least 1, got {settings.min()}")
    kept, dims = [], []
    for index, (curve, k) in enumerate(zip(curves, settings.T, strict=True)):
        counts = np.minimum(k[:, None], curve.rank)
        known = curve.overlap.shape[1]
        if counts.max() > known:
            raise ValueError(f"the curve of layer {index} ends at {known} modes, below the k and rank {counts.max()}")
        # Column 0 is k = 0, for Jacobians of rank 0.
        overlap = np.pad(np.where(curve.squared_gradient[:, None] > 0, curve.overlap, 0.0), ((0, 0), (1, 0)))
        kept.append(overlap[np.arange(len(overlap)), counts].clip(0.0, 1.0) * curve.squared_gradient)
        dims.append(counts.astype(np.float64))
    return _with_output(kept, kept, dims, [curve.squared_gradient for curve in curves], output)


def upstream_terms(spectra: Sequence[UpstreamSpectrum], output: Output) -> GuessTerms:
    """The terms of the upstream guess W̃ᵀ, which has one setting. spectra: one for each hidden layer, in order."""
    squares = [spectrum.singular_values**2 for spectrum in spectra]
    parts = [spectrum.components for spectrum in spectra]
    return _with_output(
        [np.sum(square * part, axis=1)[None] for square, part in zip(squares, parts, strict=True)],
        [np.sum(square**2 * part, axis=1)[None] for square, part in zip(squares, parts, strict=True)],
        [np.sum(square, axis=1)[None] for square in squares],
        [spectrum.squared_gradient for spectrum in spectra],
        output,
    )


def activation_quantities(terms: GuessTerms, layers: Layers = "joint") -> Quantities:
    """All quantities in activation space. layers: whether layers are perturbed in one joint pass or separately."""
    return _quantities(
        terms.inner.sum(-1),
        terms.mean_square.sum(-1),
        terms.variance(layers).sum(-1),
        terms.squared_gradient.sum(-1),
    )


def weight_variance(terms: GuessTerms, squared_inputs: Sequence[Array], layers: Layers = "joint") -> Array:
    """tr Cov Ĝ = Σ_b ‖x_b‖² tr Cov ĝ_b, (layer, setting), with all layers together as the last layer.

    squared_inputs: ‖x_b‖² (example,) for every tap, the output last.
    """
    norms = _stacked_inputs(terms, squared_inputs)
    return _with_all(np.einsum("lsb,lb->ls", terms.variance(layers), norms))


def weight_quantities(terms: GuessTerms, cross: Sequence[CrossTerms], layers: Layers = "joint") -> Quantities:
    """All quantities in weight space. cross: the cross terms of every tap, the output tap last."""
    variance = weight_variance(terms, [tap.squared_input for tap in cross], layers)[:-1]
    for tap in cross:
        if tap.inner.shape != variance.shape[1:] or tap.mean_square.shape != variance.shape[1:]:
            raise ValueError(f"cross terms must have one value a setting, {variance.shape[1]}, got {tap.inner.shape}")
    return _quantities(
        np.stack([tap.inner for tap in cross]),
        np.stack([tap.mean_square for tap in cross]),
        variance,
        np.array([tap.squared_gradient for tap in cross]),
    )


def _with_output(
    inner: list[Array], mean_square: list[Array], trace: list[Array], squared_gradients: list[Array], output: Output
) -> GuessTerms:
    """The terms of the hidden layers, each (setting, example), followed by those of the output tap."""
    lengths = {len(squared) for squared in (*squared_gradients, output.squared_gradient)}
    if len(lengths) > 1:
        raise ValueError(f"all layers must have the same examples, got {sorted(lengths)} of them")
    shape = inner[0].shape if inner else (1, len(output.squared_gradient))
    whole = np.broadcast_to(output.squared_gradient, shape)
    return GuessTerms(
        np.stack([*inner, whole]),
        np.stack([*mean_square, whole]),
        np.stack([*trace, np.full(shape, float(output.units))]),
        np.stack([*squared_gradients, output.squared_gradient]),
    )


def _quantities(inner: Array, mean_square: Array, variance: Array, squared_gradient: Array) -> Quantities:
    """All quantities from ⟨ḡ, g⟩, ‖ḡ‖², tr Cov ĝ (layer, setting) and ‖g‖² (layer,)."""
    inner, mean_square, variance = _with_all(inner), _with_all(mean_square), _with_all(variance)
    truth = _with_all(squared_gradient)[:, None]
    squared_bias = np.maximum(mean_square - 2 * inner + truth, 0.0)
    second = mean_square + variance
    scale = np.divide(inner, second, out=np.full_like(inner, np.nan), where=second > 0)
    progress = inner * scale
    efficiency = np.divide(progress, truth, out=np.full_like(inner, np.nan), where=truth > 0)
    return Quantities(squared_bias, variance, squared_bias + variance, efficiency, scale)


def _with_all(per_layer: Array) -> Array:
    return np.concatenate([per_layer, per_layer.sum(0, keepdims=True)])


def _stacked_inputs(terms: GuessTerms, squared_inputs: Sequence[Array]) -> Array:
    expected = terms.squared_gradient.shape
    if len(squared_inputs) != expected[0] or any(norms.shape != expected[1:] for norms in squared_inputs):
        raise ValueError(f"squared_inputs must be {expected[0]} arrays of {expected[1]} examples, the output's last")
    stacked = np.stack(squared_inputs)
    check_not_negative("squared_input", stacked)
    return stacked
