"""Mean cosine of the guess for a whole batch in activation space, with example slopes and independent Gaussian noise.

**Blocks.** A block is the part of a guess that one slope multiplies: t_b y_b with y_b ~ N(0, Σ_b). Its slope is
t_b = y_b·g_b + o_b, where o_b ~ N(0, T_b) comes from the layers outside the block. Blocks are independent. The cosine
of all blocks together is

    cos = N/(√D ‖g‖)      N = Σ_b t_b y_b·g_b      D = Σ_b t_b² ‖y_b‖²

**Separating the blocks.** With D^(−½) = (2/√π) ∫₀^∞ e^(−s²D) ds the expectation becomes a product over blocks:

    E cos = (2/(√π‖g‖)) ∫₀^∞ ds Σ_b E[N_b e^(−s²D_b)] Π_{c≠b} E[e^(−s²D_c)]

**One block.** Let the value τ of the slope be given, and θ = s²τ². The weight e^(−θ‖y‖²) has the mean
Π(θ) = Π_i (1 + 2θλ_i)^(−½). Under this weight y is still Gaussian, and y·g has the variance
v(θ) = Σ_i e_i λ_i/(1 + 2θλ_i). So the slope has the normal density φ with variance T + v(θ), and given τ the mean of
y·g is τ v/(T + v):

    E e^(−s²D) = ∫ dτ Π(θ) φ(τ; T + v(θ))        E N e^(−s²D) = ∫ dτ τ² (v/(T + v)) Π(θ) φ(τ; T + v(θ))

**Numerically**, Π and v depend on s and τ only through the product sτ. On grids of log s and log τ with the same step
they are therefore computed once for each value of log s + log τ. Sums over such a grid converge exponentially
(`theory.quadrature`). For a single block the result is that of `theory.cosine.gaussian`.

Derivation: docs/mathematics.md#cosine-of-a-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from theory import cosine
from theory.cosine import gaussian, isotropic
from theory.factors import Array
from theory.linear_guess import Layers, check_switches, of_others
from theory.quadrature import log_nodes, log_trapezoid

BATCH_LOG_STEP = 0.15  # of log s and log τ: errors of e^(−π²/0.3) = 5e-15
LOWEST = -9.0  # log s and log τ begin here, in units of their scales: below, integrands are powers up to e^(−18)
TOP_SLOPE = 2.2  # log τ ends at the logarithm of 9 standard deviations
# Where log s ends: the first value at which the integrand is negligible. It falls slowly for few examples or modes.
REACHES = (4.0, 10.0, 22.0)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Independent blocks of a guess. Raises ValueError for arrays of shapes that do not fit together.

    Attributes:
        eigenvalues: λ_i of Σ_b, (block, mode).
        components: e_i = (v_iᵀg)², (block, mode).
        counts: the number of dimensions with this eigenvalue, (block, mode); 0 pads blocks with fewer modes.
        others: T, the variance of the part of the slope from outside the block, (block,).
    """

    eigenvalues: Array
    components: Array
    counts: Array
    others: Array

    def __post_init__(self) -> None:
        shape = self.eigenvalues.shape
        if len(shape) != 2 or not shape == self.components.shape == self.counts.shape or self.others.shape != shape[:1]:
            raise ValueError(
                "eigenvalues, components and counts must be (block, mode) and others (block,), got the shapes "
                f"{shape}, {self.components.shape}, {self.counts.shape} and {self.others.shape}"
            )


def mean_cosine(blocks: Blocks, squared_gradient: float) -> float:
    """E cos of all blocks together, with a relative error below 1e-9.

    squared_gradient: ‖g‖², at least the sum of ``blocks.components``. NaN if it is zero, and if no block has both a
    slope and a direction.
    """
    slopes = blocks.others + np.sum(blocks.components * blocks.eigenvalues, axis=1)
    traces = np.sum(blocks.counts * blocks.eigenvalues, axis=1)
    (used,) = np.nonzero((slopes > 0) & (traces > 0))
    if squared_gradient <= 0 or len(used) == 0:
        return float("nan")
    kept = Blocks(blocks.eigenvalues[used], blocks.components[used], blocks.counts[used], blocks.others[used])
    if len(used) == 1:
        cosine = gaussian(kept.eigenvalues, kept.components, squared_gradient, kept.others, kept.counts)
        return float(cosine[0])
    for reach in REACHES:
        values = _integrand(kept, slopes[used], traces[used], reach)
        if values[-1] < 1e-13 * values.max():
            break
    return float(2 / np.sqrt(np.pi * squared_gradient) * log_trapezoid(values, BATCH_LOG_STEP))


def activation_cosines(
    spectra: Sequence[tuple[Array, Array]],
    squared_gradients: ArrayLike,
    *,
    layers: Layers,
    groups: Sequence[Sequence[int]] | None = None,
) -> Array:
    """E cos in activation space of each layer and of all layers together, (layer + 1,).

    For independent Gaussian noise and example slopes.

    spectra: eigenvalues and components (example, mode) of every layer, from `theory.spectrum.spectrum`.
    squared_gradients: ‖g_l‖² (layer,), summed over examples. groups: which of the given layers make up each layer that
    is asked for; each by itself by default. Raises ValueError for an unknown ``layers``.
    """
    check_switches("example", layers)
    squares = np.asarray(squared_gradients, np.float64)
    asked = [[layer] for layer in range(len(spectra))] if groups is None else groups
    of_group = [float(squares[list(group)].sum()) for group in asked]
    everything = list(range(len(spectra)))
    if layers == "separate":
        blocks = [_stacked([spectra[layer] for layer in group]) for group in [*asked, everything]]
        return np.array([mean_cosine(b, s) for b, s in zip(blocks, [*of_group, float(squares.sum())], strict=True)])
    merged = [_side_by_side([spectra[layer] for layer in group]) for group in asked]
    strengths = np.stack([np.sum(values * parts, axis=1) for values, parts in merged])
    others = of_others(strengths, "example", layers)
    cosines = [
        mean_cosine(_plain_blocks(*spectrum, other), square)
        for spectrum, other, square in zip(merged, others, of_group, strict=True)
    ]
    whole = _plain_blocks(*_side_by_side(spectra), np.zeros(strengths.shape[1]))
    return np.array([*cosines, mean_cosine(whole, float(squares.sum()))])


def _side_by_side(spectra: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Spectra of one slope, (example, mode)."""
    values, parts = (np.concatenate(side, axis=1) for side in zip(*spectra, strict=True))
    return values, parts


def _stacked(spectra: Sequence[tuple[Array, Array]]) -> Blocks:
    """Spectra with slopes of their own."""
    widest = max(values.shape[1] for values, _ in spectra)
    padded = [[np.pad(a, ((0, 0), (0, widest - a.shape[1]))) for a in spectrum] for spectrum in spectra]
    values, parts = (np.concatenate(side) for side in zip(*padded, strict=True))
    return _plain_blocks(values, parts, np.zeros(len(values)))


def of_one_example(
    spectra: Sequence[tuple[Array, Array]], weights: ArrayLike, squared_gradients: ArrayLike, *, layers: Layers
) -> Array:
    """E cos in weight space for a batch of one example, of each layer and of all layers together, (layer + 1,).

    For one example Ĝ_l = ĝ_l xᵀ has the cosine of ĝ_l. In the cosine of all layers together, layer l has the weight
    ‖x_l‖². In separate passes layer l is a block with the gradient ‖x_l‖ g_l.

    Arguments as in `theory.cosine.of_one_example`. Raises ValueError for an unknown ``layers``.
    """
    kappa, squares = np.asarray(weights, np.float64), np.asarray(squared_gradients, np.float64)
    cosines = activation_cosines(spectra, squares, layers=layers)
    cosines[:-1][kappa == 0] = np.nan
    if layers == "joint":
        cosines[-1] = cosine.of_one_example(spectra, kappa, squares)
        return cosines
    blocks = _stacked([(values, weight * parts) for (values, parts), weight in zip(spectra, kappa, strict=True)])
    cosines[-1] = mean_cosine(blocks, float(kappa @ squares))
    return cosines


def separate_weight_perturbation(squared_norms: ArrayLike, sizes: ArrayLike) -> Array:
    """E cos of weight perturbation Ĝ_l = t_l V_l in separate passes, of each layer and of all together, (layer + 1,).

    For Gaussian V. squared_norms: ‖G_l‖² (layer,). sizes: P_l (layer,). For a joint pass see
    `theory.cosine.weight_perturbation`.
    """
    squares, dims = np.asarray(squared_norms, np.float64), np.asarray(sizes, np.float64)
    blocks = Blocks(np.ones((len(squares), 1)), squares[:, None], dims[:, None], np.zeros_like(squares))
    layers = np.where(squares > 0, isotropic(dims), np.nan)
    return np.append(layers, mean_cosine(blocks, float(squares.sum())))


def _plain_blocks(eigenvalues: Array, components: Array, others: Array) -> Blocks:
    """A mode a dimension, or one mode for all where every dimension that is there has the same eigenvalue."""
    counts = (eigenvalues > 0).astype(np.float64)
    largest = eigenvalues.max(1, keepdims=True, initial=0.0)
    if bool(np.all((eigenvalues == largest) | (eigenvalues == 0))):
        kept = np.sum(components * counts, axis=1, keepdims=True)
        return Blocks(largest, kept, counts.sum(1, keepdims=True), others)
    return Blocks(eigenvalues, components, counts, others)


def _integrand(blocks: Blocks, slopes: Array, traces: Array, reach: float) -> Array:
    """s Σ_b E[N_b e^(−s²D_b)] Π_{c≠b} E[e^(−s²D_c)] at the nodes of log s, (node,)."""
    squares = np.sum(blocks.components * blocks.eigenvalues**2, axis=1)
    log_s = log_nodes(LOWEST, reach, BATCH_LOG_STEP)
    log_tau = log_nodes(LOWEST - reach, TOP_SLOPE, BATCH_LOG_STEP)
    log_sum = log_s[0] + log_tau[0] + BATCH_LOG_STEP * np.arange(len(log_s) + len(log_tau) - 1)
    scale = 1.0 / np.sum(slopes * traces + 2 * squares)  # 1/E D
    rows = np.arange(len(log_s))[:, None] + np.arange(len(log_tau))
    tau = np.exp(log_tau)
    log_product, ratios = np.zeros(len(log_s)), np.zeros(len(log_s))
    for block, slope in enumerate(slopes):
        theta = scale * slope * np.exp(2 * log_sum)
        seen = blocks.counts[block] > 0
        values, counts = blocks.eigenvalues[block, seen], blocks.counts[block, seen]
        grown = 1.0 + 2.0 * theta[:, None] * values
        decay = np.exp(-0.5 * (np.log(grown) @ counts))
        slope_variance = (1.0 / grown) @ (blocks.components[block, seen] * values)
        # Slopes in units of their standard deviation at θ = 0.
        variance = np.maximum((blocks.others[block] + slope_variance) / slope, np.finfo(np.float64).tiny)
        density = np.sqrt(2 / np.pi) * (decay / np.sqrt(variance))[rows]
        density *= tau * np.exp(-(tau**2) * (0.5 / variance)[rows])
        plain = log_trapezoid(density, BATCH_LOG_STEP)
        weighted = log_trapezoid(density * (slope_variance / variance)[rows] * tau**2, BATCH_LOG_STEP)
        log_product += np.log(plain)
        ratios += weighted / plain
    return np.sqrt(scale) * np.exp(log_s + log_product) * ratios
