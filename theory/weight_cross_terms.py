"""Inner products of the mean upstream guesses of different examples, which weight space needs beyond energy curves.

With them `theory.subspace.weight_quantities` has bias, mse, efficiency and best scale in weight space. Source:
docs/mathematics.md#energy-curves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.energy_curves import Array, Counts


@dataclass(frozen=True)
class CrossTerms:
    """The inner products of one layer that weight space needs beyond the energy curves.

    Attributes:
        squared_input: ‖x_b‖², (example,).
        inner, mean_square: ⟨E Ĝ, G⟩ and ‖E Ĝ‖², (setting,).
        squared_gradient: ‖G‖².
    """

    squared_input: Array
    inner: Array
    mean_square: Array
    squared_gradient: float


def cross_terms(mean: Array, gradients: Array, inputs: Array) -> CrossTerms:
    """The cross terms of a tap for one setting, from its mean guess Σ_b g_b, with Σ_b = JᵀJ, or I at the output tap.

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
    """The cross terms of a hidden tap for every k of ``ks`` (setting,).

    parts: (example, unit, mode), v_i v_iᵀg for the right singular vectors v_i of the upstream Jacobians, by descending
    singular value, zero beyond the rank. tied: (example, mode), whether a singular value equals the next one.
    gradients, inputs: as in `cross_terms`. A k beyond the last mode stands for all modes.

    Let c singular values be equal, and P the projector on the span of their vectors. Each of the c modes then has the
    same part p = P g/c. A k that takes m of the c modes uses a random projector P_m with E P_m g = m p and

        E‖P_m g‖² − ‖E P_m g‖² = (m/c − m²/c²) ‖P g‖² = m (c − m) ‖p‖²

    The bases of different examples are independent, so this adds ‖x_b‖² m (c − m) ‖p‖² to ‖E Ĝ‖².
    """
    if parts.ndim != 3 or parts.shape[:2] != gradients.shape or tied.shape != (len(parts), parts.shape[2]):
        raise ValueError(
            "parts must be (example, unit, mode) and tied (example, mode) for gradients (example, unit), "
            f"got the shapes {parts.shape}, {tied.shape} and {gradients.shape}"
        )
    if np.min(ks) < 1:
        raise ValueError(f"k must be at least 1, got {np.min(ks)}")
    whole = cross_terms(gradients, gradients, inputs)
    # Inner products of weight gradients depend on X through XXᵀ alone, so R of Xᵀ = QR can stand in for Xᵀ.
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
    """m (c − m), (example, mode), where k takes m of c equal singular values; 0 where it takes all of them or none."""
    taken, left = np.ones(tied.shape, dtype=np.int64), np.zeros(tied.shape, dtype=np.int64)
    for mode in range(1, tied.shape[1]):
        taken[:, mode] += taken[:, mode - 1] * tied[:, mode - 1]
    for mode in range(tied.shape[1] - 2, -1, -1):
        left[:, mode] = (left[:, mode + 1] + 1) * tied[:, mode]
    return taken * left
