"""Second moments in weight space of every guess along y = A ε, on any network (docs/mathematics.md#rows).

    Ĝ_l = Σ_e Σ_{i of l} W_ie ĝ_ie,      ĝ_ie = t_e A_ie ε_ie  or, with the batch's slope,  (Σ_e t_e) A_ie ε_ie

The taps i of a layer l share its parameters: a module called twice, or tied weights. With the noise of example e at all
of them side by side, Ĝ_l = Σ_e t_e B_e ε_e with B_e = [W_ie A_ie]_i: a linear guess again, with weights for units. So
the formulas of `theory.linear_guess` hold with B for A, the slope's coefficients a_ie = A_ieᵀ g_ie being the same. Of
independent noise and example slopes, S_e = Σ ‖a_ie‖² over all taps in a joint pass, and κ = fourth, pair = 1,

    tr Cov Ĝ_l = Σ_e [S_e ‖B_e‖_F² + ‖B_e a_e‖² + (κ − 3) Σ_j a_ej² ‖B_ej‖²]          B_ej: column j

With passes of their own, taps of one layer have slopes of their own, and their variances add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from theory.factors import Array, Dense, Diagonal, Factor, gram
from theory.linear_guess import Law, Layers, Slope, check_switches, from_outside, noise_vectors
from theory.weight_maps import WeightMap, placed


@dataclass(frozen=True, eq=False)
class AtTap:
    """What the moments of a layer take from one of its taps: A, W, the coefficients a (example, noise), the law."""

    factor: Factor
    weight_map: WeightMap
    pulled: Array
    law: Law

    def written(self, numbers: Array) -> Array:
        """(example, number) → (example, weight of the layer)."""
        return placed(self.weight_map, self.weight_map.apply(numbers))

    def column_squares(self) -> Array:
        """‖B_ej‖², (example, noise)."""
        if isinstance(self.factor, Diagonal):
            return self.factor.scale**2 * self.weight_map.column_squares()
        squares = np.empty_like(self.pulled)
        for j in range(squares.shape[1]):
            squares[:, j] = self.weight_map.squared_norms(self._column(j))
        return squares

    def of_vectors(self, squares: Array) -> Array:
        """What noise vectors of pair ≠ 1 add to the variance, (example,). squares: of `column_squares`."""
        law = self.law
        if isinstance(self.factor, Diagonal) and law.vectors > 1 and law.pair != 1.0:
            # A vector is a row, so that all of them are done at once.
            lengths, traces = (_by_vector(values, law.vectors) for values in (self.pulled**2, squares))
            pushed = self.weight_map.row_squares(self.factor.push(self.pulled), law.vectors)
            return (law.pair - 1.0) * np.sum(lengths * traces + 2.0 * pushed, axis=1)
        total = np.zeros(len(squares))
        for share, factor, noise, mask in noise_vectors(self.factor, self.pulled, law, beyond_one=True):
            pushed = self.weight_map.squared_norms(factor.push(noise))
            total += share * (np.sum(noise**2, axis=1) * (squares @ mask) + 2.0 * pushed)
        return total

    def matrix(self) -> Array:
        """B, (example, weight of the layer, noise)."""
        return np.stack([self.written(self._column(j)) for j in range(self.pulled.shape[1])], axis=2)

    def _column(self, j: int) -> Array:
        unit = np.zeros_like(self.pulled)
        unit[:, j] = 1.0
        return self.factor.push(unit)


def covariances(
    gradients: Sequence[Array],
    factors: Sequence[Factor],
    weight_maps: Sequence[WeightMap | None],
    groups: Sequence[Sequence[int]],
    laws: Sequence[Law],
    *,
    outside: Array | None = None,
    shared: bool,
    slope: Slope,
    layers: Layers,
) -> list[Array]:
    """tr Cov(Ĝ_l,e, Ĝ_l,f) of the parts of Ĝ_l that examples e and f give, (example, example) for each group of taps.

    Its sum is tr Cov Ĝ_l. gradients: g (example, number) a tap. factors: A, W: weight_maps, a tap each; None for W of a
    tap in no group. groups: for every layer that is asked for, its taps. laws: of each tap's noise. outside: as in
    `theory.linear_guess.moments`. The switches are those of docs/notation.md#the-three-switches, "separate" giving
    every tap a pass of its own.

    Raises ValueError for unknown switches and for sequences of different lengths.
    """
    check_switches(slope, layers)
    lengths = [len(gradients), len(factors), len(weight_maps), len(laws)]
    if len(set(lengths)) != 1:
        raise ValueError(f"gradients, factors, weight_maps and laws must have one entry a tap, got {lengths} entries")
    pulled = [factor.pull(gradient) for factor, gradient in zip(factors, gradients, strict=True)]
    if shared and slope == "batch":
        pulled = [np.broadcast_to(noise.sum(0), noise.shape) for noise in pulled]
    if not groups:
        return []
    of_group = _shared if shared else _independent
    beside = from_outside(len(gradients[0]), outside, slope, layers)
    found = []
    for group in groups:
        passes = [list(group)] if layers == "joint" else [[tap] for tap in group]
        parts = []
        for taps in passes:
            in_slope = pulled if layers == "joint" else [pulled[tap] for tap in taps]
            at_taps = _at_taps(taps, factors, weight_maps, pulled, laws)
            parts.append(of_group(at_taps, in_slope, beside, slope))
        found.append(np.sum(parts, axis=0))
    return found


def _at_taps(
    taps: Sequence[int],
    factors: Sequence[Factor],
    weight_maps: Sequence[WeightMap | None],
    pulled: Sequence[Array],
    laws: Sequence[Law],
) -> list[AtTap]:
    chosen = []
    for tap in taps:
        weight_map = weight_maps[tap]
        if weight_map is None:
            raise ValueError(f"tap {tap} is in a group but has no weight map")
        chosen.append(AtTap(factors[tap], weight_map, pulled[tap], laws[tap]))
    return chosen


def _independent(taps: Sequence[AtTap], in_slope: Sequence[Array], beside: Array, slope: Slope) -> Array:
    """in_slope: the coefficients a of every tap in the slope, those of ``taps`` among them. beside: from elsewhere."""
    strength = np.sum([np.sum(noise**2, axis=1) for noise in in_slope], axis=0)
    if slope == "batch":
        strength = np.full_like(strength, strength.sum())
    strength = strength + np.diagonal(beside)
    mean = np.sum([tap.written(tap.factor.push(tap.pulled)) for tap in taps], axis=0)
    variances = np.sum(mean**2, axis=1)
    for tap in taps:
        squares = tap.column_squares()
        variances += strength * squares.sum(1) + tap.of_vectors(squares)
        if tap.law.excess != 0.0:
            variances += tap.law.excess * np.sum(tap.pulled**2 * squares, axis=1)
    covariances = gram(mean) if slope == "batch" else np.zeros((len(mean), len(mean)))
    np.fill_diagonal(covariances, variances)
    return covariances


def _by_vector(values: Array, n_vectors: int) -> Array:
    """Sums over the entries of each noise vector, (example, noise) → (example, vector)."""
    return values.reshape(len(values), n_vectors, -1).sum(2)


def _shared(taps: Sequence[AtTap], in_slope: Sequence[Array], beside: Array, slope: Slope) -> Array:
    strength = np.sum([gram(noise) for noise in in_slope], axis=0) + beside
    matrices = [Dense(tap.matrix()) for tap in taps]
    whole = Dense(np.concatenate([matrix.array for matrix in matrices], axis=2))
    noise = np.concatenate([tap.pulled for tap in taps], axis=1)
    crossed = gram(whole.push(noise)) if slope == "batch" else whole.crossed(noise)
    covariances = strength * whole.traces() + crossed
    for tap, matrix in zip(taps, matrices, strict=True):
        for share, factor, part, _ in noise_vectors(matrix, tap.pulled, tap.law, beyond_one=True):
            pushed = gram(factor.push(part))
            inner = pushed if slope == "batch" else factor.crossed(part)
            covariances += share * (gram(part) * factor.traces() + inner + pushed)
        if tap.law.excess != 0.0:
            covariances += tap.law.excess * matrix.fourth_pairs(tap.pulled)
    return covariances
