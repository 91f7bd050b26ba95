"""Mean and second moments of every guess that is a slope times a linear image of noise.

Source: docs/mathematics.md#linear-guesses.

    y_l,b = A_l,b ε,   ĝ_l,b = t_b y_l,b  with  t_b = Σ_l y_l,b·g_l,b  (slope "example")   or   t = Σ_b t_b  ("batch")

Each layer and example has its own noise vector ε, or each layer has one for the whole batch (``shared``). The noise is
symmetric, of unit variance, with

    E ε_i ε_j ε_k ε_m = pair (δ_ij δ_km + δ_ik δ_jm + δ_im δ_jk) + (fourth − 3 pair) δ_ijkm.

Where an example has several rows at a layer, its units are the numbers of all of them, and ε is made of one noise
vector for each row: entries of different vectors have pair = 1. Below, each term in pair or fourth is then a sum over
these vectors, and what is between them counts once.

With ``layers`` "separate", the slope of a layer leaves the other layers out. Let a_b = A_bᵀ g_b, so that
t_b = Σ_l a_l,b·ε_l,b.

**Independent noise.** The mean is m_b = A_b a_b = Σ_b g_b for both slopes, since of the batch slope only a_b·ε_b
depends on ε_b. This part of the slope is independent of the other parts. So for each unit u

    E t² y_u² = (O + pair ‖a_b‖²) Σ_uu + 2 pair m_u² + (fourth − 3 pair) Σ_j a_j² A_uj²

where O is Σ ‖a‖² over the other layers and, for the batch slope, also over the other examples. For examples b ≠ c,
E t_b t_c y_b·y_c = m_b·m_c with example slopes. The square of the batch slope contains t_b t_c twice, which gives
2 m_b·m_c.

**Shared noise.** Now all pairs of examples are correlated. Let s_b = a_b for example slopes, and s_b = Σ_b' a_b' for
the batch slope. The guess is (s_b·ε + other layers) A_b ε, with mean A_b s_b. For the batch slope this is A_b Σ_b'
A_b'ᵀ g_b' and no longer Σ_b g_b. With C = A_bᵀ A_c for the pair (b, c),

    E ĝ_b·ĝ_c = (O_bc + pair s_b·s_c) tr C + pair (s_bᵀ C s_c + s_bᵀ Cᵀ s_c) + (fourth − 3 pair) Σ_j s_bj s_cj C_jj

where O_bc is Σ s_b·s_c over the other layers.

Sources: Ren et al. 2023 for one layer and Gaussian noise; the general forms are derived here, and enumerated in tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from theory.factors import Array, Diagonal, Factor, gram

Slope = Literal["example", "batch"]
Layers = Literal["joint", "separate"]


@dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of the guess of one layer, enough for every space.

    Variances are computed directly, because a difference of E ĝ² and a squared mean loses all digits of a guess that
    hardly varies.

    Attributes:
        mean: E ĝ, (example, unit), loss per unit of activation.
        variances: of every entry, (example, unit), (loss per unit of activation)².
        covariances: tr Cov(ĝ_b, ĝ_c), (example, example), in the same units; NaN where it is unknown. The diagonal is
            the sum of ``variances`` over units.
    """

    mean: Array
    variances: Array
    covariances: Array

    @property
    def squares(self) -> Array:
        """E ĝ² (example, unit), element by element."""
        squares: Array = self.mean**2 + self.variances
        return squares

    @property
    def products(self) -> Array:
        """E ⟨ĝ_b, ĝ_c⟩ (example, example)."""
        return gram(self.mean) + self.covariances

    def variance(self, kernel: Array | None = None) -> float:
        """tr Cov of the guess, Σ_bc K_bc tr Cov(ĝ_b, ĝ_c): activation space without a kernel, weight space with K."""
        return float(np.trace(self.covariances) if kernel is None else np.sum(kernel * self.covariances))

    def second_moment(self, kernel: Array | None = None) -> float:
        """E‖ĝ‖²_K = Σ_bc K_bc E⟨ĝ_b, ĝ_c⟩: activation space without a kernel, weight space with K = X Xᵀ."""
        return float(np.trace(self.products) if kernel is None else np.sum(kernel * self.products))


@dataclass(frozen=True)
class Law:
    """E ε_i⁴ and, within a noise vector, E ε_i² ε_j²; how many noise vectors of one length make an example's ε."""

    fourth: float
    pair: float
    vectors: int = 1

    @property
    def excess(self) -> float:
        """What a fourth moment of a single entry has beyond that of a rotation-invariant law."""
        return self.fourth - 3.0 * self.pair


def noise_vectors(
    factor: Factor, noise: Array, law: Law, *, beyond_one: bool = False
) -> Iterator[tuple[float, Factor, Array, Array]]:
    """The terms of fourth order: weight, A and a of some noise, and which noise (noise,), zeros elsewhere.

    All of the noise has the weight 1, and each noise vector its pair less 1 more. With a single vector both are one
    term. ``beyond_one`` leaves out the first.
    """
    every = np.ones(noise.shape[1])
    if law.vectors == 1:
        weight = law.pair - 1.0 if beyond_one else law.pair
        if weight != 0.0:
            yield weight, factor, noise, every
        return
    if not beyond_one:
        yield 1.0, factor, noise, every
    if law.pair != 1.0:
        for mask in np.repeat(np.eye(law.vectors), noise.shape[1] // law.vectors, axis=1):
            yield law.pair - 1.0, factor.restricted(mask), noise * mask, mask


def moments(
    gradients: Sequence[Array],
    factors: Sequence[Factor],
    fourth: Sequence[float],
    pair: Sequence[float],
    vectors: Sequence[int] | None = None,
    *,
    outside: Array | None = None,
    shared: bool,
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    """Mean and second moments of one guess for both spaces, a `Moments` for each layer.

    gradients: g_l (example, unit), loss per unit of activation. factors: A_l. fourth, pair: E ε_i⁴ and E ε_i² ε_j² of
    each layer's noise. vectors: how many noise vectors an example has at each layer, one by default. outside: Cov(o_b,
    o_c) (example, example) of what is in the slopes of a joint pass beside these layers, t_b = Σ_l a_l,b·ε_l,b + o_b.
    shared, slope, layers: the switches of docs/notation.md#the-three-switches.

    Raises ValueError for unknown switches, for sequences of different lengths and for shapes that do not fit.
    """
    check_switches(slope, layers)
    _check_shapes(gradients, factors, fourth, pair)
    counts = [1] * len(factors) if vectors is None else vectors
    laws = [Law(*law) for law in zip(fourth, pair, counts, strict=True)]
    pulled = [factor.pull(gradient) for factor, gradient in zip(factors, gradients, strict=True)]
    beside = from_outside(len(gradients[0]), outside, slope, layers)
    if not shared:
        return _independent(factors, pulled, laws, beside, slope, layers)
    if slope == "batch":
        pulled = [np.broadcast_to(noise.sum(0), noise.shape) for noise in pulled]
    return _shared(factors, pulled, laws, beside, slope, layers)


def from_outside(n_examples: int, outside: Array | None, slope: Slope, layers: Layers) -> Array:
    """Covariances of what is in two examples' slopes from elsewhere, (example, example)."""
    if outside is None or layers == "separate":
        return np.zeros((n_examples, n_examples))
    return outside if slope == "example" else np.full_like(outside, outside.sum())


def _independent(
    factors: Sequence[Factor],
    pulled: Sequence[Array],
    laws: Sequence[Law],
    beside: Array,
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    strengths = np.stack([np.sum(noise**2, axis=1) for noise in pulled])  # ‖a‖², (layer, example)
    others = of_others(strengths, slope, layers) + np.diagonal(beside)
    moments = []
    for other, factor, noise, law in zip(others, factors, pulled, laws, strict=True):
        mean = factor.push(noise)
        variances = _variances(factor, noise, mean, other, law)
        moments.append(Moments(mean, variances, independent_covariances(mean, variances, slope)))
    return moments


def of_others(strengths: Array, slope: Slope, layers: Layers) -> Array:
    """The sum of ``strengths`` (layer, example) over everything else in the slope of an entry.

    This is the other layers, and for the "batch" slope also the other examples. The terms are added. A difference from
    the total would lose all digits where one layer has nearly all of it.
    """
    if layers == "separate" and slope == "example":
        return np.zeros_like(strengths)
    if layers == "joint" and slope == "batch":
        return _left_out(strengths.reshape(-1)).reshape(strengths.shape)
    return _left_out(strengths) if layers == "joint" else _left_out(strengths.T).T


def _left_out(values: Array) -> Array:
    """For each entry of the first axis, the sum of all other entries: those before it plus those after it."""
    zero = np.zeros_like(values[:1])
    before = np.cumsum(np.concatenate([zero, values[:-1]]), axis=0)
    after = np.cumsum(np.concatenate([zero, values[:0:-1]]), axis=0)[::-1]
    return before + after


def independent_covariances(mean: Array, variances: Array, slope: Slope) -> Array:
    """tr Cov(ĝ_b, ĝ_c) for independent noise. Off the diagonal it is m_b·m_c for the batch slope, and otherwise 0."""
    covariances = gram(mean) if slope == "batch" else np.zeros((len(mean), len(mean)))
    np.fill_diagonal(covariances, variances.sum(1))
    return covariances


def _shared(
    factors: Sequence[Factor],
    pulled: Sequence[Array],
    laws: Sequence[Law],
    beside: Array,
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    products = np.stack([gram(noise) for noise in pulled])  # s_b·s_c, (layer, example, example)
    others = (_left_out(products) if layers == "joint" else np.zeros_like(products)) + beside
    moments = []
    for other, factor, noise, law in zip(others, factors, pulled, laws, strict=True):
        mean = factor.push(noise)
        strength, rest = other, -gram(mean)
        for weight, part, own, _ in noise_vectors(factor, noise, law):
            if part is factor:  # Every example has the same trace of all noise, which is computed once.
                strength = strength + weight * gram(own)
            else:
                rest = rest + weight * gram(own) * part.traces()
            pushed = gram(part.push(own))
            # With the batch slope both crossed terms are inner products of means.
            rest = rest + weight * (pushed + (pushed if slope == "batch" else part.crossed(own)))
        covariances = strength * factor.traces() + rest
        if law.excess != 0.0:
            covariances = covariances + law.excess * factor.fourth_pairs(noise)
        variances = _variances(factor, noise, mean, np.diagonal(other), law)
        moments.append(Moments(mean, variances, covariances))
    return moments


def _variances(factor: Factor, noise: Array, mean: Array, others: Array, law: Law) -> Array:
    """Var ĝ_bu, (example, unit). others: O, the slope's variance from elsewhere, (example,)."""
    variances = others[:, None] * factor.diagonal() - mean**2
    if isinstance(factor, Diagonal) and law.vectors > 1:
        # A vector is a row, so that all of them are done at once.
        lengths = np.sum(noise.reshape(len(noise), law.vectors, -1) ** 2, axis=2)
        each = np.repeat(lengths, noise.shape[1] // law.vectors, axis=1)
        strength = lengths.sum(1, keepdims=True) + (law.pair - 1.0) * each
        variances += strength * factor.diagonal() + 2.0 * law.pair * mean**2
    else:
        for weight, part, own, _ in noise_vectors(factor, noise, law):
            strength = weight * np.sum(own**2, axis=1, keepdims=True)
            variances += strength * part.diagonal() + 2.0 * weight * part.push(own) ** 2
    return variances + law.excess * factor.fourth(noise) if law.excess != 0.0 else variances


def check_switches(slope: str, layers: str) -> None:
    """Raises ValueError for a value that docs/notation.md#the-three-switches does not list."""
    if slope not in ("example", "batch"):
        raise ValueError(f"slope must be 'example' or 'batch', got {slope!r}")
    if layers not in ("joint", "separate"):
        raise ValueError(f"layers must be 'joint' or 'separate', got {layers!r}")


def _check_shapes(
    gradients: Sequence[Array], factors: Sequence[Factor], fourth: Sequence[float], pair: Sequence[float]
) -> None:
    lengths = [len(gradients), len(factors), len(fourth), len(pair)]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"gradients, factors, fourth and pair must have one entry a layer, got {lengths} entries")
    for layer, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
        if gradient.shape != factor.shape:
            raise ValueError(
                f"layer {layer} has gradients (example, unit) of shape {gradient.shape} but a factor for {factor.shape}"
            )
    examples = {gradient.shape[0] for gradient in gradients}
    if len(examples) > 1:
        raise ValueError(f"all layers must have the same examples, got {sorted(examples)} of them")
