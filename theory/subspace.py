"""The low-dimensional story as formulas: what energy curves say of the upstream guesses, for every k.

One guess ĝ = t y of the gradient g, with y ~ N(0, Σ) drawn for every layer and example on its own, and each example's
own slope t. With T = Σ_l gᵀΣg over the layers of one joint pass (over the one layer, for separate passes), per example

    ⟨E ĝ, g⟩ = gᵀΣg        ‖E ĝ‖² = ‖Σg‖²        tr Cov ĝ = T tr Σ + ‖Σg‖²

                          Σ          gᵀΣg           ‖Σg‖²          tr Σ
    orthogonal upstream   V_kV_kᵀ    o_k²‖g‖²       o_k²‖g‖²       min(k, rank)
    upstream (W̃ᵀ)         JᵀJ        Σ_i σ_i² c_i   Σ_i σ_i⁴ c_i   Σ_i σ_i²        c_i = (v_iᵀg)²
    output tap of both    I          ‖g‖²           ‖g‖²           its units

Examples and layers add up. Activation space needs nothing else. In weight space (inner products weighted by XXᵀ) the
variance is Σ_b ‖x_b‖² tr Cov ĝ_b, from the same curves. Bias, mse, efficiency and best scale are not: they contain the
inner products of the mean guess *between* examples. `cross_terms` and `orthogonal_cross_terms` make those from vectors.

The noise is Gaussian. Another fourth moment κ adds (κ−3) Σ_j (A_jᵀg)²‖A_j‖² to the variance, with Σ = AAᵀ, and A is
more than its spectrum. Nor are noise shared between examples and one slope for the whole batch treated here.

Equal singular values leave V_k undetermined for a k between them. Given a curve that rises linearly there (and, in
weight space, the parts that `orthogonal_cross_terms` describes) bias², variance and mse are the means over random bases
of the span, drawn for each example on its own: all three are linear in each example's V_kV_kᵀ. Efficiency
and best scale are ratios and no such means; they are those of a guess that draws the basis afresh every time, whose
⟨ḡ, g⟩ and E‖ĝ‖² those means are.

Squared gradients are in (loss per unit of activation)². Raises ValueError for shapes that do not fit, for NaN or
infinite entries and for numbers that no gradient or spectrum has. Sources:
docs/mathematics.md#linear-guesses, docs/mathematics.md#energy-curves; Wang et al. 2025; Singhal et al. 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from theory.energy_curves import Array, Counts, Output, OverlapCurve, UpstreamSpectrum, check_not_negative

Layers = Literal["joint", "separate"]


@dataclass(frozen=True)
class GuessTerms:
    """The terms of tr Cov (docs/mathematics.md#total-variance): gᵀΣg, ‖Σg‖² and tr Σ, each (layer, setting, example).

    The output tap is the last layer.

    squared_gradient: (layer, example). A setting is one choice of k (of one k a layer).
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
class CrossTerms:
    """One layer in weight space: ‖x_b‖² (example,), ⟨E Ĝ, G⟩ and ‖E Ĝ‖², each (setting,), and ‖G‖²."""

    squared_input: Array
    inner: Array
    mean_square: Array
    squared_gradient: float


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
    """The orthogonal upstream guess for many k at once.

    curves: the hidden layers in order. ks: (setting,), the same k in every layer, or (setting, layer). Raises
    ValueError for a k below 1, and for one that lies beyond a curve that ends below the rank.
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
        # Column 0 is k = 0: all that a Jacobian of rank 0 lets through.
        overlap = np.pad(np.where(curve.squared_gradient[:, None] > 0, curve.overlap, 0.0), ((0, 0), (1, 0)))
        kept.append(overlap[np.arange(len(overlap)), counts].clip(0.0, 1.0) * curve.squared_gradient)
        dims.append(counts.astype(np.float64))
    return _with_output(kept, kept, dims, [curve.squared_gradient for curve in curves], output)


def upstream_terms(spectra: Sequence[UpstreamSpectrum], output: Output) -> GuessTerms:
    """The upstream guess W̃ᵀ, one setting. spectra: the hidden layers in order."""
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
    """Everything in activation space, from the curves alone. layers: one joint pass or a separate one for each."""
    return _quantities(
        terms.inner.sum(-1),
        terms.mean_square.sum(-1),
        terms.variance(layers).sum(-1),
        terms.squared_gradient.sum(-1),
    )


def weight_variance(terms: GuessTerms, squared_inputs: Sequence[Array], layers: Layers = "joint") -> Array:
    """tr Cov Ĝ = Σ_b ‖x_b‖² tr Cov ĝ_b, (layer, setting), the taps and then all: what the curves alone say of weights.

    squared_inputs: ‖x_b‖² (example,) for every tap, the output last.
    """
    norms = _stacked_inputs(terms, squared_inputs)
    return _with_all(np.einsum("lsb,lb->ls", terms.variance(layers), norms))


def weight_quantities(terms: GuessTerms, cross: Sequence[CrossTerms], layers: Layers = "joint") -> Quantities:
    """Everything in weight space, given the cross terms of every tap, the output last."""
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


def cross_terms(mean: Array, gradients: Array, inputs: Array) -> CrossTerms:
    """The cross terms of a tap, one setting, from its mean guess Σ_b g_b (Σ_b = JᵀJ, or I at the output tap).

    mean, gradients: (example, unit). inputs: (example, input), with a column of ones for a bias.
    """
    if mean.shape != gradients.shape or gradients.ndim != 2 or inputs.shape[:1] != gradients.shape[:1]:
        raise ValueError(
            f"mean and gradients must be (example, unit), inputs (example, input), got the shapes {mean.shape}, "
            f"{gradients.shape} and {inputs.shape}"
        )
    guess, truth = mean.T @ inputs, gradients.T @ inputs
    return CrossTerms(
        np.sum(inputs**2, axis=1),
        np.array([np.sum(guess * truth)]),
        np.array([np.sum(guess**2)]),
        float(np.sum(truth**2)),
    )


def orthogonal_cross_terms(
    parts: NDArray[np.floating], tied: NDArray[np.bool_], gradients: Array, inputs: Array, ks: Counts
) -> CrossTerms:
    """The cross terms of a hidden tap for every k of ``ks`` (setting,), adding up one mode after the other.

    parts: (example, unit, mode), v_i v_iᵀg of the right singular vectors of the upstream Jacobians in descending order,
    zero beyond the rank. tied: (example, mode), whether a singular value equals the next. Of c equal ones each has the
    same part p = P g/c, P the projector on their span, and of m of them the random projector P_m has E P_m g = m p and

        E‖P_m g‖² − ‖E P_m g‖² = (m/c − m²/c²) ‖P g‖² = m (c − m) ‖p‖²

    which counts with ‖x_b‖², as examples' bases are independent. gradients, inputs: as in `cross_terms`. A k beyond the
    last mode counts as all modes.
    """
    if parts.ndim != 3 or parts.shape[:2] != gradients.shape or tied.shape != (len(parts), parts.shape[2]):
        raise ValueError(
            "parts must be (example, unit, mode) and tied (example, mode) for gradients (example, unit), "
            f"got the shapes {parts.shape}, {tied.shape} and {gradients.shape}"
        )
    if np.min(ks) < 1:
        raise ValueError(f"k must be at least 1, got {np.min(ks)}")
    whole = cross_terms(gradients, gradients, inputs)
    # Inner products of weight gradients see the inputs through XXᵀ alone, so R of Xᵀ = QR will do where it is smaller.
    mixing = inputs if inputs.shape[0] >= inputs.shape[1] else np.linalg.qr(inputs.T)[1].T
    truth = gradients.T @ mixing
    guess = np.zeros_like(truth)
    n_modes = parts.shape[2]
    inner, mean_square = np.empty(n_modes), np.empty(n_modes)
    inside = _pairs_split(tied)
    for mode in range(n_modes):
        part = parts[:, :, mode].astype(np.float64)
        guess += part.T @ mixing
        scatter = whole.squared_input @ (inside[:, mode] * np.sum(part**2, axis=1))
        inner[mode], mean_square[mode] = np.vdot(guess, truth), np.vdot(guess, guess) + scatter
    chosen = np.minimum(ks, n_modes) - 1
    return CrossTerms(whole.squared_input, inner[chosen], mean_square[chosen], whole.squared_gradient)


def _pairs_split(tied: NDArray[np.bool_]) -> Counts:
    """m (c − m) where a k takes m of c equal singular values, (example, mode): 0 where it takes all or none."""
    taken, left = np.ones(tied.shape, dtype=np.int64), np.zeros(tied.shape, dtype=np.int64)
    for mode in range(1, tied.shape[1]):
        taken[:, mode] += taken[:, mode - 1] * tied[:, mode - 1]
    for mode in range(tied.shape[1] - 2, -1, -1):
        left[:, mode] = (left[:, mode + 1] + 1) * tied[:, mode]
    return taken * left


def best_setting(quantities: Quantities) -> Counts:
    """The setting of highest efficiency for every layer and for all together, (layer,); the first of equals.

    −1 for a layer without a gradient. The best k is ``ks[best_setting(…)]``. The output tap has no k of its own, but in
    a joint pass the hidden layers' k decide how noisy its guess is.
    """
    efficiency = np.where(np.isnan(quantities.efficiency), -np.inf, quantities.efficiency)
    return np.where(np.isneginf(efficiency).all(1), -1, np.argmax(efficiency, axis=1))


def best_k_of_each_layer(curves: Sequence[OverlapCurve], output: Output, layers: Layers = "joint") -> Counts:
    """One k a hidden layer, (layer,), for the highest efficiency of all layers together in activation space.

    Coordinate ascent from the best common k, over the k that the curves hold, until no layer's k alone can be improved:
    never worse than a common k, not proven to be the best of all combinations. Raises ValueError without a gradient.
    """
    tops = np.array([max(min(int(curve.rank.max()), curve.overlap.shape[1]), 1) for curve in curves])
    common = np.minimum(np.arange(1, tops.max() + 1)[:, None], tops)
    first = best_setting(activation_quantities(orthogonal_terms(curves, output, common), layers))[-1]
    if first < 0:
        raise ValueError("there is no best k: every gradient is zero")
    chosen, efficiency = common[first], -np.inf
    while True:
        before = efficiency
        for layer, top in enumerate(tops):
            tried = np.repeat(chosen[None], top, axis=0)
            tried[:, layer] = np.arange(1, top + 1)
            found = activation_quantities(orthogonal_terms(curves, output, tried), layers)
            best = best_setting(found)[-1]
            if found.efficiency[-1, best] > efficiency:
                chosen, efficiency = tried[best], found.efficiency[-1, best]
        if efficiency == before:
            return chosen


def _with_output(
    inner: list[Array], mean_square: list[Array], trace: list[Array], squared_gradients: list[Array], output: Output
) -> GuessTerms:
    """Hidden layers' terms (setting, example) with the output tap's behind them."""
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
    """From ⟨ḡ, g⟩, ‖ḡ‖², tr Cov ĝ (layer, setting) and ‖g‖² (layer,), all of which add up over layers."""
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
